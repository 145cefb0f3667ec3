// node http.mjs URL BYTES LOGIN TRIES: uploads and prints the status of each answer.
import http from 'node:http'
const [url, bytes, login, tries] = process.argv.slice(2)
for (let i = 0; i < tries; i++) {
	console.log(await new Promise(resolve => {
		const request = http.request(url, { method: 'POST', auth: login || undefined, headers: { 'Content-Length': bytes } }, answer => {
			answer.resume().on('end', () => resolve(answer.statusCode)).on('error', e => resolve(String(e)))
		})
		request.on('error', e => resolve(String(e)))
		request.end(Buffer.alloc(+bytes))
	}))
}
