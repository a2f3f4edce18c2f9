#!/usr/bin/python3
"""A Moorline caller, written from docs/PROTOCOL.md alone (the numbers in comments are its sections).

    caller.py --join join.txt --token-file alice.token lamp-1 http < request > answer
    ssh -o ProxyCommand='caller.py --join join.txt --token-file alice.token lamp-1 ssh' lamp-1

Negotiates by POST and joins with the leg's token; with --direct both are one request. Standard input and output are the stream.
Needs Debian's python3-websockets. Ends with 0 done, 1 cut, 2 usage, 3 refused, 4 relay not reachable, 5 token."""
import argparse, asyncio, base64, http.client, json, os, secrets, signal, ssl, sys
from urllib.parse import quote, urlsplit

import websockets

websockets.connect.MAX_REDIRECTS_ALLOWED = 1  # a redirect is a failure (5.2)


class Failed(Exception):
    """What to say, and the exit code."""


def refused(problem):
    words = [problem.get("title", "refused"), problem.get("detail", ""), problem.get("device_detail", "")]
    last_seen = f"last seen {problem['last_seen']}" if "last_seen" in problem else ""
    said = ": ".join(word for word in words + [last_seen] if word)
    return Failed(f"{problem.get('code')}: {said}", 5 if problem.get("status") == 401 else 3)


class Caller:
    def __init__(self, args):
        address, _, ca = open(args.join).read().strip().partition("#ca=")
        self.relay = urlsplit(address)
        self.token = open(args.token_file).read().strip()
        self.args = args
        der = base64.urlsafe_b64decode(ca + "=" * (-len(ca) % 4))
        self.tls = ssl.create_default_context(cadata=der or None)
        self.tls.set_alpn_protocols(["http/1.1"])

    def negotiate(self):
        """POST (7.3): the leg's url and token."""
        args = self.args
        body = {"service": args.service, "deadline_s": args.deadline, "wait_s": args.wait, "reason": args.reason or None}
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", "Idempotency-Key": secrets.token_hex(16)}
        connection = http.client.HTTPSConnection(self.relay.hostname, self.relay.port, context=self.tls, timeout=40)
        connection.request("POST", f"/v1/devices/{args.device}/streams", json.dumps(body), headers)
        answer = connection.getresponse()
        content = json.loads(answer.read() or b"{}")
        connection.close()
        if answer.status not in (201, 202):
            raise refused({"status": answer.status, "code": answer.status, **content})
        return content["url"], content["token"]

    async def open(self):
        """The leg, right behind `opened` (7.2, 8.1, 8.2)."""
        args, headers = self.args, {}
        if args.direct:
            path, token = f"/v1/devices/{args.device}/connect/{args.service}", self.token
            headers = {"Moorline-Deadline": str(args.deadline), "Moorline-Wait": str(args.wait), "Moorline-Reason": quote(args.reason)}
        else:
            path, token = await asyncio.to_thread(self.negotiate)
        url = urlsplit(f"wss://{self.relay.netloc}{path}" if path.startswith("/") else path)
        if url.scheme not in ("https", "wss") or url.hostname != self.relay.hostname or "@" in url.netloc:
            raise Failed(f"the relay named a leg on another host: {path}", 3)
        # No close timer is in the way: this caller never sends 1000 (8.4, 13).
        leg = await websockets.connect(
            url._replace(scheme="wss").geturl(), ssl=self.tls, subprotocols=["moorline.stream.v1"], compression=None, ping_interval=None,
            close_timeout=5, max_size=65536, max_queue=4, open_timeout=20, extra_headers={"Authorization": f"Bearer {token}", **headers})
        first = json.loads(await asyncio.wait_for(leg.recv(), args.wait + args.deadline + 10))
        if first["type"] != "opened":
            raise refused(first["problem"])
        return leg


def write_all(data):
    while data:
        data = data[os.write(1, data):]


async def carry(leg):
    """Bytes both ways, until the relay closes the leg (8.3)."""
    delivered = False

    async def up():
        while data := await asyncio.to_thread(os.read, 0, 65536):
            await leg.send(data)
        await leg.send('{"type":"end"}')

    sending = asyncio.create_task(up())
    try:
        async for message in leg:
            if isinstance(message, bytes):
                written = asyncio.ensure_future(asyncio.to_thread(write_all, message))
                while not (await asyncio.wait([written], timeout=20))[0]:
                    await leg.pong()  # not reading, but alive (8.5)
                written.result()
            elif (kind := json.loads(message)["type"]) == "end":
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever reads our output sees its end
                await leg.send('{"type":"delivered"}')  # everything before it was written
            elif kind == "delivered":
                delivered = True
    except OSError as error:
        await leg.close(4001)
        raise Failed(f"standard output: {error.strerror}", 1)
    except websockets.ConnectionClosed:
        pass  # the code says why
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    if leg.close_code != 1000:
        raise Failed(f"the stream was cut: {leg.close_code} {leg.close_reason}", 1)
    if not delivered:
        raise Failed("the far side was done before it had received everything", 1)
    return 0


async def run(args):
    try:
        return await carry(await Caller(args).open())
    except Failed as failed:
        said, code = failed.args
    except websockets.InvalidStatusCode as error:  # this library does not show the problem in the body
        said, code = f"refused with status {error.status_code}", 5 if error.status_code == 401 else 3
    except websockets.ConnectionClosed as closed:
        said, code = f"the leg was closed before opened: {closed}", 1
    except (OSError, websockets.InvalidHandshake, http.client.HTTPException) as error:
        said, code = f"the relay is not reachable: {error!r}", 4
    print("caller:", said, file=sys.stderr)
    return code


def main():
    args = argparse.ArgumentParser(description="A Moorline caller in Python.")
    args.add_argument("--join", metavar="FILE", required=True, help="file with the relay's join string")
    args.add_argument("--token-file", metavar="FILE", required=True)
    args.add_argument("--direct", action="store_true", help="negotiate and join in one request")
    args.add_argument("--deadline", metavar="SECONDS", type=int, default=60)
    args.add_argument("--wait", metavar="SECONDS", type=int, default=0, help="for a device that is offline")
    args.add_argument("--reason", metavar="TEXT", default="")
    args.add_argument("device", metavar="DEVICE")
    args.add_argument("service", metavar="SERVICE")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # ssh sends it when it is done; our standard input ends then, too
    code = asyncio.get_event_loop_policy().new_event_loop().run_until_complete(run(args.parse_args()))
    sys.stderr.flush()
    os._exit(code)  # a thread may still wait for standard input


if __name__ == "__main__":
    main()
