//! A provider's server, as a process of its own: it answers every request with a stream of tokens, each of which is the
//! time at which it was written.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

use super::formats::Format;
use crate::child::Parent;

/// Digits of a time in a token.
const DIGITS: usize = 20;

/// Nanoseconds of the clock that all processes of a machine share.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// How long ago a token was written.
///
/// # Errors
/// It is no time.
pub(super) fn age(token: &str) -> Result<u64> {
    let received = now();
    let written: u64 = token
        .parse()
        .with_context(|| format!("the token is {token:?}"))?;
    Ok(received.saturating_sub(written))
}

/// What the next requests are answered with.
#[derive(Debug, Clone, Copy)]
struct Plan {
    format: &'static Format,
    tokens: usize,
    gap: Duration,
}

/// The child: says its port, and takes plans.
pub(super) fn serve(parent: Parent) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let plan: Arc<Mutex<Option<Plan>>> = Arc::default();
    let plans = plan.clone();
    thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let plan = plan.clone();
            // A client that goes away ends its thread.
            thread::spawn(move || converse(connection, &plan));
        }
    });
    parent.serve(|request| {
        if request == "port" {
            return Ok(port.to_string());
        }
        let words: Vec<_> = request.split(' ').collect();
        let [profile, tokens, micros] = words[..] else {
            anyhow::bail!("{request:?} is no plan");
        };
        let (formats, _) = Format::all();
        let format = formats.into_iter().find(|format| format.profile == profile);
        let plan = Plan {
            format: format.context("no such format")?,
            tokens: tokens.parse()?,
            gap: Duration::from_micros(micros.parse()?),
        };
        *plans
            .lock()
            .map_err(|_| anyhow::anyhow!("a connection panicked"))? = Some(plan);
        Ok("ready".to_owned())
    })
}

fn converse(connection: TcpStream, plan: &Mutex<Option<Plan>>) -> Result<()> {
    connection.set_nodelay(true)?;
    let mut requests = BufReader::new(connection.try_clone()?);
    let mut answers = connection;
    while let Some(chunked) = read_request(&mut requests)? {
        let plan = *plan
            .lock()
            .map_err(|_| anyhow::anyhow!("a connection panicked"))?;
        answer(&mut answers, plan.context("nothing is planned")?, chunked)?;
        if !chunked {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether the answer may be chunked; `None` at the end.
fn read_request(requests: &mut impl BufRead) -> Result<Option<bool>> {
    let (mut length, mut chunked) = (0, true);
    loop {
        let mut line = String::new();
        if requests.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse()?;
        }
        chunked &= line != "connection: close";
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    requests.read_exact(&mut body)?;
    Ok(Some(chunked))
}

fn answer(connection: &mut TcpStream, plan: Plan, chunked: bool) -> Result<()> {
    let framing = if chunked {
        "transfer-encoding: chunked"
    } else {
        "connection: close"
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {}\r\n{framing}\r\n\r\n",
        plan.format.media_type
    );
    let frame = |piece: &str| match (chunked, piece.len()) {
        (_, 0) => String::new(),
        (true, length) => format!("{length:x}\r\n{piece}\r\n"),
        (false, _) => piece.to_owned(),
    };
    connection.write_all((head + &frame(plan.format.begin)).as_bytes())?;
    let empty = "0".repeat(DIGITS);
    let template = frame(&plan.format.token(&empty));
    let at = template
        .find(&empty)
        .context("a token has its text in it")?;
    let mut token = template.into_bytes();
    for _ in 0..plan.tokens {
        thread::sleep(plan.gap);
        let mut digits = &mut token[at..at + DIGITS];
        write!(digits, "{:0DIGITS$}", now())?;
        connection.write_all(&token)?;
    }
    let end = frame(plan.format.end) + if chunked { "0\r\n\r\n" } else { "" };
    connection.write_all(end.as_bytes())?;
    Ok(())
}
