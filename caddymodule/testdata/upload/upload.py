# python3 upload.py URL BYTES LOGIN TRIES: uploads and prints the status of each answer.
import base64
import http.client
import sys
import urllib.parse

url, size, login, tries = sys.argv[1:]
target = urllib.parse.urlsplit(url)
headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}
for _ in range(int(tries)):
    try:
        connection = http.client.HTTPConnection(target.netloc, timeout=30)
        connection.request("POST", target.path, bytes(int(size)), headers)
        answer = connection.getresponse()
        answer.read()
        print(answer.status)
    except OSError as e:
        print(repr(e))
