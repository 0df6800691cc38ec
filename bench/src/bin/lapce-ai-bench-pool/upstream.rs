//! A server of chat completions in a process of its own: this program again, which says the same to everybody.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::reply::TOKENS;

/// The longest request that it reads.
pub(crate) const LONGEST: usize = 64 << 10;

/// The child. Dropped, it is killed.
pub(crate) struct Upstream {
    child: Child,
    url: String,
}

impl Upstream {
    pub(crate) fn start() -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .arg("upstream")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the upstream")?;
        let mut url = String::new();
        let read = match child.stdout.take() {
            Some(stdout) => BufReader::new(stdout).read_line(&mut url),
            None => Ok(0),
        };
        let upstream = Self {
            child,
            url: url.trim().to_owned(),
        };
        if read? == 0 {
            bail!("the upstream ended before it said where it is");
        }
        Ok(upstream)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Lets it end.
    pub(crate) fn finish(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the upstream ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until standard input ends.
pub(crate) fn serve() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(until_told())
}

async fn until_told() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/v1\n", listener.local_addr()?);
    io::stdout().write_all(url.as_bytes())?;
    io::stdout().flush()?;
    let told = tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new()));
    tokio::select! {
        told = told => {
            told??;
            Ok(())
        }
        failed = serve_all(listener, answer().leak()) => failed,
    }
}

async fn serve_all(listener: TcpListener, answer: &'static [u8]) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        // Whoever hangs up has what it wanted.
        tokio::spawn(async move { exchange(stream, answer).await.ok() });
    }
}

/// A piece of an answer, as it is written.
pub(crate) fn event(delta: &serde_json::Value, reason: Option<&str>) -> String {
    let document = serde_json::json!({"id": "c", "object": "chat.completion.chunk", "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]});
    format!("data: {document}\n\n")
}

fn answer() -> Vec<u8> {
    let mut body: String = TOKENS
        .iter()
        .map(|token| event(&serde_json::json!({"content": token}), None))
        .collect();
    body.push_str(&event(&serde_json::json!({}), Some("stop")));
    body.push_str("data: [DONE]\n\n");
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Answers requests one after the other.
async fn exchange(mut stream: TcpStream, answer: &[u8]) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let length = loop {
            if let Some(length) = length_of_request(&bytes) {
                break length;
            }
            if bytes.len() > LONGEST || stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        bytes.drain(..length);
        stream.write_all(answer).await?;
    }
}

/// The bytes of the first whole request.
pub(crate) fn length_of_request(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?;
    let body = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse::<usize>().ok())?
    });
    let whole = head + body.unwrap_or(0);
    (bytes.len() >= whole).then_some(whole)
}
