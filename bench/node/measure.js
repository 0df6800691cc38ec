// What both Node.js peers share: the messages, and the loops that measure them. Everything is measured in here, with
// process.hrtime.bigint(), and the figure is printed as one line of JSON of the form that lapce-ai-bench reads.
'use strict';

const fs = require('node:fs');

const now = process.hrtime.bigint;
const ALPHABET = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ';

/** As many different texts as may be in flight and two more, so that no answer is taken for another message's. */
exports.payloads = (length, window) =>
  Array.from({ length: window + 2 }, (_, index) => {
    let text = String(index).padStart(8, '0');
    for (let at = text.length; at < length; at += 1) {
      text += ALPHABET[(at * 31 + index) % ALPHABET.length];
    }
    return text;
  });

exports.wrongData = (index) => {
  throw new Error(`wrong data: what came is no answer to message ${index}`);
};

/** What lapce-ai-bench asked for. */
exports.settings = () => {
  // Ends with its parent, which holds the other end.
  process.stdin.on('end', () => process.exit(1)).resume();
  return JSON.parse(process.argv[2]);
};

/**
 * Measures. `send(n)` sends the next n messages; returned is what must be called with the number of right answers that
 * came, whenever some came.
 */
exports.measure = (settings, send) => {
  const { mode, window } = settings;
  const time = BigInt(settings.nanos);
  const least = settings.least;
  // As long as the measurement: what is measured is compiled code.
  const warmUp = { began: now(), count: 0 };
  const print = (figure) => {
    fs.writeSync(1, `${JSON.stringify(figure)}\n`);
    process.exit(0);
  };
  const isOver = (began, count, at) =>
    at - began >= time && (count >= least || at - began >= 10n * time);

  if (mode === 'latency') {
    const took = [];
    let warm = false;
    let began = 0n;
    let sent = 0n;
    const one = () => {
      sent = now();
      send(1);
    };
    setImmediate(one);
    return () => {
      const at = now();
      if (warm) {
        took.push(Number(at - sent));
        if (isOver(began, took.length, at)) {
          print({ latency: quantiles(took), distribution: distribution(took) });
        }
      } else {
        warmUp.count += 1;
        warm = isOver(warmUp.began, warmUp.count, at);
        began = at;
      }
      one();
    };
  }

  let began = null;
  let count = 0;
  setImmediate(() => send(window));
  return (answers) => {
    const at = now();
    if (began === null) {
      warmUp.count += answers;
      if (isOver(warmUp.began, warmUp.count, at)) {
        began = at;
      }
    } else {
      count += answers;
      if (isOver(began, count, at)) {
        const seconds = Number(at - began) / 1e9;
        print({ throughput: { messages: count, seconds, per_second: count / seconds } });
      }
    }
    send(answers);
  };
};

/** How often each latency came, to three digits: what is printed stays small. */
function distribution(took) {
  const counts = new Map();
  for (const ns of took) {
    const unit = 10 ** Math.max(0, Math.floor(Math.log10(Math.max(1, ns))) - 2);
    const rounded = Math.round(ns / unit) * unit;
    counts.set(rounded, (counts.get(rounded) ?? 0) + 1);
  }
  return [...counts];
}

function quantiles(took) {
  const sorted = Float64Array.from(took).sort();
  const at = (quantile) => sorted[Math.max(0, Math.ceil(quantile * sorted.length) - 1)];
  return { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1), samples: sorted.length };
}
