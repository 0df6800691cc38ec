// Node.js's own IPC between a process and its child: JSON messages that carry the payload as a string.
'use strict';

if (process.argv[2] === 'echo') {
  process.on('message', (message) => process.send(message));
  process.on('disconnect', () => process.exit(0));
  // The parent is gone: it has its figure, or has said what was wrong.
  process.on('error', () => process.exit(0));
  process.send('ready');
} else {
  const { fork } = require('node:child_process');
  const { measure, payloads, settings, wrongData } = require('./measure.js');

  const wanted = settings();
  const texts = payloads(wanted.payload, wanted.window);
  const child = fork(__filename, ['echo'], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
  child.on('exit', () => process.exit(1));
  child.once('message', () => {
    let sent = 0;
    let answered = 0;
    const onAnswers = measure(wanted, (n) => {
      for (let i = 0; i < n; i += 1) {
        child.send({ id: sent, payload: texts[sent % texts.length] });
        sent += 1;
      }
    });
    child.on('message', ({ id, payload }) => {
      if (id !== answered || payload !== texts[answered % texts.length]) {
        wrongData(answered);
      }
      answered += 1;
      onAnswers(1);
    });
  });
}
