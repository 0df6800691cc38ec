// Node.js's net over a Unix socket: binary frames, each a length of four bytes and the payload. Each frame is one write, as
// programs do it; or, batched, both sides write all that they have at a time in one go, which is the fastest that net offers.
'use strict';

const net = require('node:net');

const PREFIX = 4;

/** Calls `onFrames` with every piece that is whole frames; the lengths within are checked. */
function frames(socket, onFrames) {
  let rest = Buffer.alloc(0);
  socket.on('data', (chunk) => {
    const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    const lengths = [];
    let end = 0;
    while (bytes.length - end >= PREFIX) {
      const length = PREFIX + bytes.readUInt32LE(end);
      if (bytes.length - end < length) {
        break;
      }
      lengths.push(length);
      end += length;
    }
    rest = bytes.subarray(end);
    if (end > 0) {
      onFrames(bytes.subarray(0, end), lengths);
    }
  });
}

if (process.argv[2] === 'echo') {
  const server = net.createServer((socket) => {
    // The client is gone: it has its figure, or has said what was wrong.
    socket.on('error', () => process.exit(0));
    const batched = process.argv[4] === 'true';
    frames(socket, (bytes, lengths) => {
      if (batched) {
        socket.write(bytes);
        return;
      }
      let at = 0;
      for (const length of lengths) {
        socket.write(bytes.subarray(at, at + length));
        at += length;
      }
    });
  });
  server.listen(process.argv[3], () => process.send('ready'));
  process.on('disconnect', () => process.exit(0));
} else {
  const { fork } = require('node:child_process');
  const path = require('node:path');
  const { measure, payloads, settings, wrongData } = require('./measure.js');

  const wanted = settings();
  const messages = payloads(wanted.payload, wanted.window).map((text) => {
    const frame = Buffer.alloc(PREFIX + text.length);
    frame.writeUInt32LE(text.length);
    frame.write(text, PREFIX, 'latin1');
    return frame;
  });
  const place = path.join(__dirname, `${process.pid}.sock`);
  const child = fork(__filename, ['echo', place, String(wanted.batched)], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
  child.on('exit', () => process.exit(1));
  child.once('message', () => {
    const socket = net.connect(place, () => {
      let sent = 0;
      let answered = 0;
      const onAnswers = measure(wanted, (n) => {
        const next = Array.from({ length: n }, (_, i) => messages[(sent + i) % messages.length]);
        if (wanted.batched) {
          socket.write(Buffer.concat(next));
        } else {
          next.forEach((frame) => socket.write(frame));
        }
        sent += n;
      });
      frames(socket, (bytes, lengths) => {
        let at = 0;
        for (const length of lengths) {
          const expected = messages[answered % messages.length];
          if (bytes.compare(expected, 0, expected.length, at, at + length) !== 0) {
            wrongData(answered);
          }
          at += length;
          answered += 1;
        }
        onAnswers(lengths.length);
      });
    });
  });
}
