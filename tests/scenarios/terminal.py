#!/usr/bin/python3
"""Acts at a terminal: `terminal.py COMMAND…` runs ssh on a pseudo-terminal, types, resizes, interrupts, and exits 0 if all was as it should be."""
import fcntl, os, pty, re, select, struct, sys, termios, time

DEADLINE = time.monotonic() + 60


def resize(rows, columns):
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def expect(pattern):
    global seen
    while not re.search(pattern, seen):
        left = DEADLINE - time.monotonic()
        if left <= 0 or not select.select([master], [], [], left)[0]:
            sys.exit(f"never came: {pattern!r}; the screen: {seen!r}")
        try:
            data = os.read(master, 65536)
        except OSError:
            data = b""
        if not data:
            sys.exit(f"the session ended before {pattern!r}; the screen: {seen!r}")
        seen += data.decode(errors="replace")
    seen = seen[re.search(pattern, seen).end():]


def type_(text):
    os.write(master, text.encode())


seen = ""
child, master = pty.fork()
if child == 0:
    os.environ["PS1"] = "$ "
    os.execvp(sys.argv[1], sys.argv[1:])
resize(31, 101)
# The quotes keep the echo of what is typed from looking like its answer.
type_("PS1=; stty size; echo re''ady\n")
expect(r"31 101\r?\n")
expect(r"ready\r?\n")
resize(47, 133)
# The resize travels by a request of its own that nothing answers: its effect is waited for.
type_("until [ \"$(stty size)\" = '47 133' ]; do :; done; echo res''ized\n")
expect(r"resized\r?\n")
# One process from the first word on: the interrupt finds it, whenever it comes.
type_("sh -c \"echo beg''un; exec sleep 1000\"\n")
expect(r"begun\r?\n")
type_("\x03")
type_("echo aft''er=$?\n")
expect(r"after=130\r?\n")
type_("exit 7\n")
status = os.waitpid(child, 0)[1]
sys.exit(0 if os.waitstatus_to_exitcode(status) == 7 else f"ended as {status}")
