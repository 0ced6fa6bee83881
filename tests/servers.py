"""A server of the tests' own that speaks OpenAI's chat completions, well or badly."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(content, **more):
    message = {"role": "assistant", "content": content} | more
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if "tool_calls" in more else "stop"}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def plain(body, tries):
    """An answer that hangs on the question and the seed alone."""
    return 200, completion(f"{body['messages'][-1]['content']} {body.get('seed')}")


class Server:
    """Answers with `behave(body, tries)`: (status, JSON or bytes, [headers]); None hangs. Notes what was asked."""

    def __init__(self, behave=plain, models=("m",), delay=0.0):
        self.behave, self.models, self.delay = behave, models, delay
        self.asked, self.bodies, self.tries, self.at_once, self.most = [], [], Counter(), 0, 0
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def send(self, status, body, headers=()):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                headers = dict(headers)
                length = headers.pop("Content-Length", str(len(data)))
                for name, value in {"Content-Type": "application/json", "Content-Length": length, **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
                if int(length) != len(data):
                    self.close_connection = True

            def do_GET(self):
                self.send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in outer.models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = (json.dumps(body["messages"]), body.get("seed"))
                with lock:
                    outer.asked.append(key)
                    outer.bodies.append(
                        body | {"_headers": {name.lower(): value for name, value in self.headers.items()}}
                    )
                    outer.tries[key] += 1
                    tries = outer.tries[key]
                    outer.at_once += 1
                    outer.most = max(outer.most, outer.at_once)
                time.sleep(outer.delay)
                reply = outer.behave(body, tries)
                with lock:
                    outer.at_once -= 1
                if reply is None:
                    outer.stopped.wait(30)
                    return
                self.send(*reply)

        self.stopped = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.http.shutdown()
        self.http.server_close()
