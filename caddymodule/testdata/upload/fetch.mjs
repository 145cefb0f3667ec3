// node fetch.mjs URL BYTES LOGIN TRIES: uploads and prints the status of each answer.
const [url, bytes, login, tries] = process.argv.slice(2)
const headers = login ? { Authorization: 'Basic ' + btoa(login) } : {}
for (let i = 0; i < tries; i++) {
	try {
		const answer = await fetch(url, { method: 'POST', headers, body: Buffer.alloc(+bytes) })
		await answer.text()
		console.log(answer.status)
	} catch (e) {
		console.log(`${e}: ${e.cause}`)
	}
}
