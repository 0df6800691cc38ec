//! A provider in a process of its own: speaks OpenAI's streamed chat completions over loopback, and answers each request with
//! words that contain the request's own mark.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};

use crate::child::Parent;

/// What a mark begins with; digits follow.
const MARK: &str = "mark-";
/// Connections that may wait to be accepted, as far as the system lets them.
const BACKLOG: u32 = 4096;

/// How the mark of a request looks in its text.
pub(super) fn mark(number: u64) -> String {
    format!("{MARK}{number:016x}")
}

/// What is answered to a request with this mark.
pub(super) fn words(mark: &str) -> Vec<String> {
    let mut words: Vec<String> = (1..=8)
        .map(|n| format!("word {n} of the answer, "))
        .collect();
    words.push(format!("to {mark}"));
    words
}

/// The child: tells its address when asked, and serves until its parent goes.
pub(crate) fn upstream(parent: Parent) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 1], 0).into())?;
        socket.listen(BACKLOG)
    });
    let listener = listener.context("cannot listen on loopback")?;
    let address = listener.local_addr()?.to_string();
    thread::spawn(move || runtime.block_on(serve(listener)));
    parent.serve(|_| Ok(address.clone()))
}

async fn serve(listener: TcpListener) {
    loop {
        // Out of descriptors, say: whoever came sees that nobody answers, and the run fails by that.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        // Small frames follow each other.
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            // A client may go whenever it likes.
            let _ = connection.await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Events>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let mut response = Response::new(Events::new(&mark_in(&String::from_utf8_lossy(&body))));
    let kind = header::HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// The first mark in a text; nothing where there is none, which no client takes for an answer.
fn mark_in(text: &str) -> String {
    let Some(at) = text.find(MARK) else {
        return String::new();
    };
    let digits = text[at + MARK.len()..]
        .chars()
        .take_while(char::is_ascii_hexdigit);
    format!("{MARK}{}", digits.collect::<String>())
}

/// A body of server-sent events, one frame each.
struct Events(VecDeque<Bytes>);

impl Events {
    fn new(mark: &str) -> Self {
        let chunk = |delta: serde_json::Value, finish: Option<&str>| {
            let chunk = json!({
                "id": mark, "object": "chat.completion.chunk", "model": "scripted",
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
            });
            Bytes::from(format!("data: {chunk}\n\n"))
        };
        let mut events: VecDeque<Bytes> = words(mark)
            .into_iter()
            .map(|word| chunk(json!({ "content": word }), None))
            .collect();
        events.push_back(chunk(json!({}), Some("stop")));
        events.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        Self(events)
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|event| Ok(Frame::data(event))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_and_told_back() {
        let mark = mark(0xAB);
        assert_eq!(
            mark_in(&format!("{{\"content\":\"<before>{mark}</before>\"}}")),
            mark
        );
        assert_eq!(mark_in("nothing"), "");
        assert!(words(&mark).concat().ends_with(&mark));
    }
}
