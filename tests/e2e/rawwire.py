"""rawwire.py - alignd's wire without nng: SP over a Unix socket, msgpack by hand, one
byte at a time if a test wants that. For peers that a real client would never be: slow,
silent, or of another release."""
import itertools
import re
import socket
import struct
import time

from rig import ROOT

REQ, REP = 0x30, 0x31


def pack(v):
    if v is None:
        return b'\xc0'
    if isinstance(v, bool):
        return b'\xc3' if v else b'\xc2'
    if isinstance(v, int):
        return struct.pack('>BQ', 0xcf, v) if v >= 0 else struct.pack('>Bq', 0xd3, v)
    if isinstance(v, float):
        return struct.pack('>Bd', 0xcb, v)
    if isinstance(v, str):
        return struct.pack('>BI', 0xdb, len(v.encode())) + v.encode()
    if isinstance(v, bytes):
        return struct.pack('>BI', 0xc6, len(v)) + v
    if isinstance(v, dict):
        return struct.pack('>BI', 0xdf, len(v)) + b''.join(pack(k) + pack(x) for k, x in v.items())
    return struct.pack('>BI', 0xdd, len(v)) + b''.join(map(pack, v))


class Unpacker:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        self.at += n
        assert self.at <= len(self.data), 'cut short'
        return self.data[self.at - n:self.at]

    def number(self, fmt):
        return struct.unpack('>' + fmt, self.take(struct.calcsize('>' + fmt)))[0]

    def map(self, n):
        return {self.next(): self.next() for _ in range(n)}

    def array(self, n):
        return [self.next() for _ in range(n)]

    def next(self):
        b = self.number('B')
        if b < 0x80 or b >= 0xe0:
            return b if b < 0x80 else b - 256
        if b < 0x90:
            return self.map(b & 15)
        if b < 0xa0:
            return self.array(b & 15)
        if b < 0xc0:
            return self.take(b & 31).decode()
        if b in (0xc0, 0xc2, 0xc3):
            return {0xc0: None, 0xc2: False, 0xc3: True}[b]
        if b in (0xca, 0xcb):
            return self.number('fd'[b - 0xca])
        if 0xcc <= b <= 0xd3:
            return self.number('BHIQbhiq'[b - 0xcc])
        if 0xc4 <= b <= 0xc6:
            return self.take(self.number('BHI'[b - 0xc4]))
        if 0xd9 <= b <= 0xdb:
            return self.take(self.number('BHI'[b - 0xd9])).decode()
        if b in (0xdc, 0xdd):
            return self.array(self.number('HI'[b - 0xdc]))
        assert b in (0xde, 0xdf), f'not msgpack: {b:#x}'
        return self.map(self.number('HI'[b - 0xde]))


def unpack(data):
    return Unpacker(data).next()


def numbers():
    """Message numbers by name, from the one list."""
    text = (ROOT / 'proto/msg.h').read_text()
    return {name: int(n) for n, name in re.findall(r'\bX\((\d+), (\w+), \w+, \w+,', text)}


NUMBER = numbers()


class Pipe:
    """One connection, either side. `rate`: bytes a second that are read, None: all there are."""

    def __init__(self, sock, role):
        self.sock, self.rate, self.have = sock, None, b''
        sock.sendall(struct.pack('>4sHH', b'\0SP\0', role, 0))
        assert self.read(8)[:4] == b'\0SP\0'

    def read(self, n):
        while len(self.have) < n:
            got = self.sock.recv(1 if self.rate else 1 << 20)
            if not got:
                raise ConnectionError('closed by the other side')
            self.have += got
            if self.rate:
                time.sleep(1 / self.rate)
        out, self.have = self.have[:n], self.have[n:]
        return out

    def send(self, header, body):
        data = header + body
        self.sock.sendall(struct.pack('>BQ', 1, len(data)) + data)

    def receive(self):
        """(the 32-bit request id, the body)"""
        kind, n = struct.unpack('>BQ', self.read(9))
        assert kind == 1
        data = self.read(n)
        return data[:4], data[4:]

    def close(self):
        self.sock.close()


class Client(Pipe):
    ids = itertools.count(0x80000001)

    def __init__(self, path, receive_buffer=None):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(60)
        sock.connect(str(path))
        super().__init__(sock, REQ)

    def ask(self, name, version=1, **fields):
        """Sends; the answer is somebody else's business."""
        number = next(self.ids)
        frame = pack({'v': version, 't': NUMBER.get(name, name), **fields})
        self.send(struct.pack('>I', number), frame)
        return struct.pack('>I', number)

    def call(self, name, version=1, **fields):
        number = self.ask(name, version, **fields)
        while True:
            got, body = self.receive()
            if got == number:
                return unpack(body)


class Server:
    """Plays a daemon: answer(message) -> the reply's fields, or None for silence."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.bind(str(path))
        self.sock.listen(8)

    def serve(self, answer):
        """One connection, until it is closed."""
        pipe = Pipe(self.sock.accept()[0], REP)
        try:
            while True:
                number, body = pipe.receive()
                reply = answer(unpack(body))
                if reply is not None:
                    pipe.send(number, pack(reply))
        except ConnectionError:
            pipe.close()
