//! What the tests share: reading answers by hand, and a loopback server that sends exactly the bytes it is told to.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

pub mod aws;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapce_ai_providers::{
    ChatRequest, Decoding, Format, HttpClient, HttpConfig, HttpProvider, Message, Profile,
    Settings, Wire,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const KEY: &str = "sk-a-secret-of-the-tests";

pub fn wire(base_url: &str) -> Arc<dyn Wire> {
    wire_of("openai", base_url)
}

pub fn wire_of(profile: &str, base_url: &str) -> Arc<dyn Wire> {
    let settings = Settings {
        base_url: Some(base_url.into()),
        key: Some(KEY.into()),
        ..Settings::default()
    };
    Profile::named(profile).unwrap().wire(&settings).unwrap()
}

/// Settings with everything that any provider needs.
pub fn settings(profile: &Profile, base_url: &str) -> Settings {
    let aws = profile.format == Format::Bedrock;
    Settings {
        base_url: Some(base_url.into()),
        key: Some(KEY.into()),
        region: aws.then(|| "us-east-1".into()),
        project: Some("p1".into()),
        ..Settings::default()
    }
}

/// Where the fixtures are.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The bytes of a body that a fixture has as text.
pub fn body(media_type: &str, text: &str) -> Vec<u8> {
    match media_type {
        "application/vnd.amazon.eventstream" => aws::stream(text),
        _ => text.as_bytes().to_vec(),
    }
}

/// A decoder as for an answer of this type.
pub fn decoding(content_type: &str, limit: usize) -> Decoding {
    decoding_of("openai", content_type, limit)
}

pub fn decoding_of(profile: &str, content_type: &str, limit: usize) -> Decoding {
    let response = http::Response::builder()
        .header("content-type", content_type)
        .body(())
        .unwrap();
    Decoding::new(
        wire_of(profile, "http://127.0.0.1")
            .decoder(&response.into_parts().0, limit)
            .unwrap(),
    )
}

/// Events, or the error's kind, as text.
pub fn drain(decoding: &mut Decoding, into: &mut Vec<String>) {
    while let Some(event) = decoding.next() {
        into.push(match event {
            Ok(event) => format!("{event:?}"),
            Err(error) => format!("{:?}: {}", error.kind, error.message),
        });
    }
}

/// All events of a stream that comes in these chunks.
pub fn stream<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let (mut decoding, mut events) = (decoding("text/event-stream", 1 << 20), Vec::new());
    for chunk in chunks {
        decoding.push(chunk);
        drain(&mut decoding, &mut events);
    }
    decoding.finish();
    drain(&mut decoding, &mut events);
    events
}

/// JSON documents as a stream, ended by `[DONE]`.
pub fn sse(documents: &[&str]) -> String {
    let mut text = String::new();
    for document in documents.iter().chain(&["[DONE]"]) {
        text.push_str(&format!("data: {document}\n\n"));
    }
    text
}

pub fn request() -> ChatRequest {
    ChatRequest::new("gpt-x").with(Message::user("Hi"))
}

pub fn client() -> HttpClient {
    HttpClient::new(&HttpConfig::default()).unwrap()
}

/// A server on loopback that reads requests and leaves the answers to the test.
pub struct Upstream {
    listener: TcpListener,
}

impl Upstream {
    pub async fn start() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    pub fn base_url(&self) -> String {
        format!("{}/v1", self.origin())
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.listener.local_addr().unwrap())
    }

    pub fn provider(&self) -> HttpProvider {
        HttpProvider::new("tested", wire(&self.base_url()), client())
    }

    pub async fn accept(&self) -> Exchange {
        let stream = self.listener.accept().await.unwrap().0;
        stream.set_nodelay(true).unwrap();
        let mut exchange = Exchange {
            stream,
            head: String::new(),
            body: String::new(),
        };
        exchange.read_request().await;
        exchange
    }
}

/// One connection with its last request.
pub struct Exchange {
    stream: TcpStream,
    pub head: String,
    pub body: String,
}

impl Exchange {
    /// Reads the next request.
    pub async fn read_request(&mut self) {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            assert_ne!(
                self.stream.read_buf(&mut bytes).await.unwrap(),
                0,
                "the client closed before its request"
            );
        };
        self.head = String::from_utf8(bytes[..end].to_vec())
            .unwrap()
            .to_ascii_lowercase();
        let length = self
            .head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while bytes.len() < end + length {
            assert_ne!(self.stream.read_buf(&mut bytes).await.unwrap(), 0);
        }
        self.body = String::from_utf8(bytes[end..].to_vec()).unwrap();
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The head of a stream's answer.
    pub async fn begin_stream(&mut self) {
        self.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await;
    }

    /// A piece of the body.
    pub async fn chunk(&mut self, data: impl AsRef<[u8]>) {
        let data = data.as_ref();
        self.send(format!("{:x}\r\n", data.len())).await;
        self.send(data).await;
        self.send("\r\n").await;
    }

    pub async fn end(&mut self) {
        self.send("0\r\n\r\n").await;
    }

    /// A piece of the body; false: the client has gone.
    pub async fn try_chunk(&mut self, data: &[u8]) -> bool {
        let mut bytes = format!("{:x}\r\n", data.len()).into_bytes();
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(b"\r\n");
        self.stream.write_all(&bytes).await.is_ok()
    }

    /// The end of the body, if the client is still there.
    pub async fn try_end(&mut self) {
        let _ = self.stream.write_all(b"0\r\n\r\n").await;
    }

    /// A whole answer. `headers` are lines that end in CRLF.
    pub async fn answer(&mut self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        self.send(format!(
            "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}"
        ))
        .await;
    }

    /// Waits until the client closes the connection.
    pub async fn closed(mut self) {
        let mut rest = Vec::new();
        // A reset is as good as an end.
        let _ = self.stream.read_to_end(&mut rest).await;
    }
}

/// A piece of text as a chunk's document.
pub fn text_chunk(text: &str) -> String {
    let content = serde_json::to_string(text).unwrap();
    format!(
        r#"{{"id":"c1","object":"chat.completion.chunk","model":"gpt-x","choices":[{{"index":0,"delta":{{"content":{content}}},"finish_reason":null}}],"usage":null}}"#
    )
}

pub const FINISH: &str =
    r#"{"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}"#;
pub const USAGE: &str = r#"{"id":"c1","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,
"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":1}}}"#;
