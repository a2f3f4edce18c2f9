#!/usr/bin/python3
"""A Moorline device, written from docs/PROTOCOL.md alone (the numbers in comments are its sections).

    device.py --make-key device.key > device.pub      a new key; the operator registers device.pub
    device.py --join join.txt --device lamp-1 --key device.key ssh=127.0.0.1:22 http=127.0.0.1:8080

Needs Debian's python3-websockets and python3-cryptography."""
import argparse, asyncio, base64, contextlib, fcntl, hashlib, itertools, json, os, random, secrets, socket, ssl, struct, sys, termios, time
from urllib.parse import urlsplit

import websockets
from cryptography.hazmat.primitives import hashes, serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

websockets.connect.MAX_REDIRECTS_ALLOWED = 1  # a redirect is a failure (5.2)
INSTANCE = secrets.token_hex(16)
IDLE_LEGS = 64  # kept at once (12)


class Rejected(Exception):
    """Code and detail of a `reject`."""


def log(*words):
    print("device:", *words, file=sys.stderr, flush=True)


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def compact(value):
    return json.dumps(value, separators=(",", ":"))


def make_key(path):
    key = ed25519.Ed25519PrivateKey.generate()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()))
    print(key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo).decode(), end="")


def prove(key, nonce, host, device):
    """The proof (6.2)."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        alg, x = "EdDSA", key.public_key().public_bytes(ser.Encoding.Raw, ser.PublicFormat.Raw)
        jwk, sign = {"crv": "Ed25519", "kty": "OKP", "x": b64(x)}, key.sign
    else:
        point = key.public_key().public_numbers()
        x, y = (b64(number.to_bytes(32, "big")) for number in (point.x, point.y))
        alg, jwk = "ES256", {"crv": "P-256", "kty": "EC", "x": x, "y": y}
        sign = lambda data: b"".join(n.to_bytes(32, "big") for n in utils.decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256()))))
    kid = b64(hashlib.sha256(compact(jwk).encode()).digest())
    header = {"typ": "moorline-proof+jwt", "alg": alg, "kid": kid}
    claims = {"nonce": nonce, "aud": host, "sub": device, "instance": INSTANCE}
    signed = b64(compact(header).encode()) + "." + b64(compact(claims).encode())
    return signed + "." + b64(sign(signed.encode()))


def reset(writer):
    """Ends a local connection so that its other end sees that it was cut (8.3)."""
    if writer.get_extra_info("socket").fileno() >= 0:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def acknowledged(writer):
    """Waits until the kernel at the other end of a local connection has everything, for a second at most (8.3)."""
    local = writer.get_extra_info("socket")
    for _ in range(100):
        error = local.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        queued = 0 if local.family == socket.AF_UNIX else struct.unpack("i", fcntl.ioctl(local, termios.TIOCOUTQ, bytes(4)))[0]
        if queued + writer.transport.get_write_buffer_size() == 0:
            return
        await asyncio.sleep(0.01)


async def carry(leg, reader, writer, held=()):
    """Bytes both ways, until the relay closes the leg (8.3), or says that it is idle (8.6). `held` came before the device's `accept`.
    Returns what to log, and whether the leg is idle."""
    delivered = unsent = idle = False

    async def messages():
        for message in held:
            yield message
        async for message in leg:
            yield message

    async def up():
        nonlocal unsent
        try:
            while data := await reader.read(65536):
                unsent = True
                await leg.send(data)
                unsent = False
            await leg.send('{"type":"end"}')
        except OSError:  # the local side was reset
            await leg.close(4001)

    async def down(incoming):
        nonlocal delivered, idle
        async for message in incoming:
            if isinstance(message, bytes):
                writer.write(message)
                drained = asyncio.ensure_future(writer.drain())
                while not drained.done() and not (await asyncio.wait([drained], timeout=20))[0]:
                    await leg.pong()  # not reading, but alive (8.5)
                drained.result()
            elif (kind := json.loads(message)["type"]) == "end":
                writer.write_eof()
                await acknowledged(writer)
                await leg.send('{"type":"delivered"}')
            elif kind == "delivered":
                delivered = True
            elif kind == "idle":
                idle = True
                return

    sending = asyncio.create_task(up())
    try:
        async with contextlib.aclosing(messages()) as incoming:
            await down(incoming)
    except OSError:  # the local side takes no more
        await leg.close(4001)
    except websockets.ConnectionClosed:
        pass  # the code says why
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    if idle or leg.close_code == 1000 and not unsent:
        writer.close()
    else:
        reset(writer)
    if idle:
        return "finished", True
    return f"{leg.close_code}" + ("" if delivered or leg.close_code != 1000 else ", cut short"), False


def left(offer):
    """Seconds to open the stream, from when the offer came (6.4)."""
    return min(86_400_000, offer["expires_in_ms"]) / 1000


class Device:
    def __init__(self, join, device, key, targets):
        address, _, ca = join.strip().partition("#ca=")
        parts = urlsplit(address)
        self.host, self.base = parts.hostname, f"wss://{parts.netloc}"
        self.device, self.key, self.targets = device, key, targets
        self.tls = ssl.create_default_context(cadata=unb64(ca) or None)
        self.tls.set_alpn_protocols(["http/1.1"])
        self.control, self.undecided, self.tasks = None, {}, set()
        self.reuse, self.idle, self.opened = False, {}, {}

    def dial(self, url, subprotocol, token=None):
        # No close timer is in the way: this device never sends 1000 on a leg (8.4, 13).
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if token and self.reuse:
            headers["Moorline-Leg"] = "reuse"  # the relay may say no (8.6)
        return websockets.connect(url, ssl=self.tls, subprotocols=[subprotocol], extra_headers=headers, compression=None,
                                  ping_interval=None, close_timeout=5, max_size=65536, max_queue=4, open_timeout=20,
                                  happy_eyeballs_delay=0.25)  # an address that does not answer delays nobody (6.6)

    def spawn(self, work):
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def say(self, message):
        try:
            await self.control.send(compact(message))
        except websockets.ConnectionClosed:
            pass  # nobody waits for it

    def answer(self, offer, kind, **more):
        """`accept` or `reject`, to this attempt of the offer and no other."""
        return {"type": kind, "stream": offer["stream"], "attempt": offer.get("attempt") or 1, **more}

    def rejection(self, offer, rejected):
        code, detail = rejected.args
        return self.answer(offer, "reject", code=code, detail=str(detail)[:256])

    def leg_url(self, url):
        """Only the relay's own host (8.1)."""
        if url.startswith("/") and not url.startswith("//"):
            return self.base + url
        parts = urlsplit(url)
        own = parts.scheme in ("https", "wss") and parts.hostname == self.host and "@" not in parts.netloc
        return parts._replace(scheme="wss").geturl() if own else None

    async def target(self, offer):
        """Decides about an offer, wherever it came, and connects to its target."""
        if time.monotonic() < self.opened.get(offer["stream"], 0):
            raise Rejected("internal", "an earlier attempt reached the target")  # bytes must not reach it twice (8.6)
        target = self.targets.get(offer["service"])
        if not target:
            raise Rejected("not_exposed", "no such service here")
        try:
            return await asyncio.wait_for(asyncio.open_connection(*target), min(10, left(offer)))
        except TimeoutError:
            raise Rejected("target_timeout", "no answer") from None
        except ConnectionRefusedError as error:
            raise Rejected("target_refused", error) from None
        except OSError as error:
            raise Rejected("target_unreachable", error) from None

    async def offered(self, offer, channel):
        """One offer (6.4): target first, then accept, then the leg."""
        begun, stream, url = time.monotonic(), offer["stream"], self.leg_url(offer["url"])
        try:
            if not url:
                raise Rejected("policy", "the leg's address is not the relay's")
            reader, writer = await self.target(offer)
        except Rejected as rejected:
            return await self.say(self.rejection(offer, rejected))
        leg = idle = None
        try:
            await self.say(self.answer(offer, "accept", dial_ms=round(1000 * (time.monotonic() - begun), 3)))
            leg = await asyncio.wait_for(self.joined(url, offer["token"]), left(offer) - (time.monotonic() - begun))
            self.undecided.pop(stream, None)  # from here on only the leg's end counts
            if leg:
                idle = await self.carried(leg, offer, reader, writer)
        except TimeoutError:
            log("stream", stream, "was not opened in time")
        finally:
            if not writer.is_closing():
                reset(writer)
        if idle:
            await self.keep(leg, channel)

    async def carried(self, leg, offer, reader, writer, held=()):
        """An open stream to its end. Returns whether its leg is idle then."""
        log("stream", offer["stream"], offer["service"], "for", offer["caller"]["subject"], "opened")
        said, idle = await carry(leg, reader, writer, held)
        log("stream", offer["stream"], "ended:", said)
        return idle

    async def keep(self, leg, channel):
        """An idle leg, and the streams that are offered on it, one after the other, for as long as its control channel lasts (8.6)."""
        idle = True
        try:
            while idle and not channel.closed and len(self.idle) < IDLE_LEGS:
                self.idle[leg] = channel
                message = json.loads(await leg.recv())
                self.idle.pop(leg)
                if message["type"] == "offer":  # other types are not known
                    idle = await self.offered_on(leg, message)
            if idle:
                await leg.close(1000)
        except websockets.ConnectionClosed:
            pass  # the relay keeps it no longer
        except asyncio.CancelledError:
            leg.transport.abort()
            raise
        finally:
            self.idle.pop(leg, None)

    async def offered_on(self, leg, offer):
        """An offer on a leg, which is the device leg. Returns whether the leg is idle again."""
        log("stream", offer["stream"], "is offered on an idle leg")
        begun, stream, held = time.monotonic(), offer["stream"], []
        self.undecided[stream] = task = asyncio.current_task()
        dialling, accepted = asyncio.create_task(self.target(offer)), False
        try:
            while not dialling.done():
                reading = asyncio.create_task(leg.recv())
                await asyncio.wait([dialling, reading], return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
                if not reading.cancelled():
                    held.append(reading.result())  # bytes and `end` of the caller
                    if isinstance(held[-1], str) and json.loads(held[-1])["type"] == "cancel":
                        raise Rejected("internal", "cancelled")
            reader, writer = dialling.result()
            now = time.monotonic()
            await leg.send(compact(self.answer(offer, "accept", dial_ms=round(1000 * (now - begun), 3))))
            self.opened = {known: until for known, until in self.opened.items() if now < until} | {stream: begun + left(offer)}
            accepted = True
        except Rejected as rejected:
            await leg.send(compact(self.rejection(offer, rejected)))
            while isinstance(message := await leg.recv(), bytes) or json.loads(message)["type"] != "idle":
                pass  # of the stream that was rejected
            return True
        finally:
            if self.undecided.get(stream) is task:
                self.undecided.pop(stream)
            if not accepted and not dialling.cancel() and not dialling.exception():
                reset(dialling.result()[1])
        try:
            return await self.carried(leg, offer, reader, writer, held)
        finally:
            if not writer.is_closing():
                reset(writer)

    async def joined(self, url, token):
        """The opened leg; none if the stream did not come about. A leg that is lost before is joined again (8.1)."""
        for attempt in itertools.count():
            try:
                leg = await self.dial(url, "moorline.stream.v1", token)
            except websockets.InvalidStatusCode as error:
                if error.status_code < 500:
                    return None
            except (OSError, websockets.InvalidHandshake):
                pass
            else:
                try:
                    if json.loads(await leg.recv())["type"] == "opened":
                        return leg
                except websockets.ConnectionClosed:
                    if leg.close_code != 1006:
                        return None
                except asyncio.CancelledError:
                    leg.transport.abort()
                    raise
            await asyncio.sleep(random.uniform(0.3, min(5, 0.6 * 2**min(attempt, 4))))

    async def channel(self, away):
        """One control channel to its end (6.1); `away` gets what go_away says."""
        async with self.dial(self.base + "/v1/control", "moorline.control.v1") as ws:
            since, beat = time.monotonic(), None
            try:
                challenge = json.loads(await asyncio.wait_for(ws.recv(), 20))
                await ws.send(compact({
                    "type": "hello", "device": self.device, "instance": INSTANCE, "agent": "device.py/1",
                    "features": ["heartbeat", "reuse"],
                    "proof": prove(self.key, challenge["nonce"], self.host, self.device),
                    "services": [{"name": name} for name in self.targets]}))
                welcome = json.loads(await asyncio.wait_for(ws.recv(), 20))
                log("online, session", welcome["session"])
                self.reuse = "reuse" in welcome.get("features", [])
                self.control, beat = ws, self.spawn(self.heartbeat(ws, min(3_600_000, max(50, welcome["heartbeat_ms"])) / 1000))
                async for text in ws:
                    self.hear(json.loads(text), away, ws)
            except websockets.ConnectionClosed:
                pass  # the code says why
            finally:
                if beat:
                    beat.cancel()
                for leg in [leg for leg, channel in self.idle.items() if channel is ws]:
                    self.spawn(leg.close(1000))  # idle legs go with their channel (8.6)
            return ws.close_code, ws.close_reason or "", time.monotonic() - since

    def hear(self, message, away, channel):
        stream = message.get("stream")
        if message["type"] == "offer":  # many at once, each in a task of its own (6.3)
            if stream in self.undecided:  # offered again: this attempt replaces the one before (6.4)
                self.undecided.pop(stream).cancel()
            self.undecided[stream] = task = self.spawn(self.offered(message, channel))
            task.add_done_callback(lambda task: self.undecided.get(stream) is task and self.undecided.pop(stream))
        elif message["type"] == "cancel" and stream in self.undecided:
            self.undecided.pop(stream).cancel()
        elif message["type"] == "go_away" and not away.done():
            away.set_result(min(300_000, max(100, message["reconnect_in_ms"])) / 1000)

    async def heartbeat(self, ws, interval):
        """Pings by the device, which it announced as a feature (6.5)."""
        while True:
            await asyncio.sleep(interval)
            try:
                await asyncio.wait_for(await ws.ping(), 1.5 * interval)
            except TimeoutError:
                return ws.transport.abort()

    async def stay_online(self):
        """Comes back, for ever (6.6)."""
        failures = superseded = 0
        while True:
            since, away = time.monotonic(), asyncio.get_running_loop().create_future()
            channel = self.spawn(self.channel(away))
            await asyncio.wait([channel, away], return_when=asyncio.FIRST_COMPLETED)
            pause = random.uniform(0.1, min(60, 2**failures))
            failures = min(failures + 1, 6)
            if away.done():  # the old channel stays until the new one takes over (6.7)
                stable = time.monotonic() - since >= 60
                failures = 0 if stable else failures
                await asyncio.sleep(away.result() if stable else max(away.result(), pause))
                continue
            try:
                code, reason, lasted = channel.result()
                failures = 0 if lasted >= 60 else failures
                superseded = 0 if lasted >= 3600 else superseded
                if code == 4007 and INSTANCE not in reason:
                    superseded += 1
                    pause = pause if superseded == 1 else min(3600, 60 * 2 ** (superseded - 2))
                elif code in (4401, 4403, 4006):
                    pause = random.uniform(150, 450)
                elif code == 4400:
                    pause = 60
                why = f"{code} {reason}"
            except websockets.InvalidStatusCode as error:
                retry = error.headers.get("Retry-After", "") if error.status_code in (429, 503) else ""
                pause = max(pause, float(retry) * random.uniform(1, 1.5)) if retry.isdigit() else 60 if error.status_code < 500 else pause
                why = error
            except Exception as error:  # every failure is worth another attempt
                why = repr(error)
            log(f"offline: {why}; dialling again in {pause:.1f} s")
            await asyncio.sleep(pause)


def main():
    args = argparse.ArgumentParser(description="A Moorline device in Python.")
    args.add_argument("--make-key", metavar="FILE", help="write a new private key, print the public one, and stop")
    args.add_argument("--join", metavar="FILE", help="file with the relay's join string")
    args.add_argument("--device", metavar="ID")
    args.add_argument("--key", metavar="FILE", help="private key, PEM")
    args.add_argument("services", nargs="*", metavar="SERVICE=HOST:PORT")
    args = args.parse_args()
    if args.make_key:
        return make_key(args.make_key)
    if not (args.join and args.device and args.key and args.services):
        sys.exit("device: --join, --device, --key and a SERVICE=HOST:PORT are needed")
    targets = {name: address.rsplit(":", 1) for name, _, address in (service.partition("=") for service in args.services)}
    key = ser.load_pem_private_key(open(args.key, "rb").read(), None)
    asyncio.run(Device(open(args.join).read(), args.device, key, targets).stay_online())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
