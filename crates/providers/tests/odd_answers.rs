//! What comes between a provider and us, for every row of the table: limits, overload, proxies' pages, bodies that are
//! packed although nobody asked for it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, reason = "this test uses a part")]
#[path = "conformance/ask.rs"]
mod ask;
#[allow(dead_code, reason = "this test uses a part")]
#[path = "conformance/fixture.rs"]
mod fixture;
#[allow(dead_code, reason = "this test uses a part")]
#[path = "conformance/render.rs"]
mod render;
mod support;

use std::io::Write;
use std::time::{Duration, SystemTime};

use ask::{Ask, ask};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::response::Parts;
use lapce_ai_providers::{Decoding, ErrorKind, Feature, Format, PROFILES, Phase, Provider};
use render::{Rendering, render_error};
use support::{KEY, Upstream, client, settings};

/// Wed, 21 Oct 2026 07:28:00 GMT.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_792_567_680)
}

fn head(status: u16, media_type: &str, headers: &[(&str, &str)]) -> Parts {
    let mut head = http::Response::builder()
        .status(status)
        .header("content-type", media_type);
    for (name, value) in headers {
        head = head.header(*name, *value);
    }
    head.body(()).unwrap().into_parts().0
}

fn page(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<HTML><Head><TITLE>{title}</TITLE></head><body>Ray ID: 8</body></html>\n"
    )
}

#[test]
fn a_proxys_page_is_an_error_of_its_status_with_its_title() {
    let date = ("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT");
    let seconds = ("retry-after", "7");
    for profile in PROFILES {
        let wire = profile
            .wire(&settings(profile, "http://127.0.0.1/v1"))
            .unwrap();
        for (status, headers, kind, retry_after) in [
            (429, [seconds], ErrorKind::RateLimited, 7),
            (429, [date], ErrorKind::RateLimited, 30),
            (503, [seconds], ErrorKind::Overloaded, 7),
            (529, [date], ErrorKind::Overloaded, 30),
            (502, [("x-cache", "miss")], ErrorKind::ProviderInternal, 0),
            (
                504,
                [("x-cache", "miss")],
                ErrorKind::TimedOut(Phase::Upstream),
                0,
            ),
        ] {
            let title = format!("{status} Somewhere");
            let head = head(status, "text/html", &headers);
            for body in [page(&title), String::new()] {
                let error = wire.decode_error(&head, body.as_bytes(), now());
                let what = format!("{} {status} {headers:?}: {error}", profile.name);
                assert_eq!(error.kind, kind, "{what}");
                assert!(error.is_retryable(), "{what}");
                assert_eq!(error.status, Some(status), "{what}");
                let after = (retry_after > 0).then(|| Duration::from_secs(retry_after));
                assert_eq!(error.retry_after, after, "{what}");
                let said = if body.is_empty() { "" } else { &title };
                assert_eq!(&*error.message, said, "{what}");
            }
        }
    }
}

/// A hotel's or a company's page of welcome.
#[test]
fn a_page_that_calls_itself_a_success_is_no_answer() {
    for profile in PROFILES {
        let wire = profile
            .wire(&settings(profile, "http://127.0.0.1/v1"))
            .unwrap();
        let error = wire
            .decoder(&head(200, "text/html; charset=utf-8", &[]), 1 << 20)
            .err()
            .unwrap();
        let what = format!("{}: {error}", profile.name);
        assert_eq!(error.kind, ErrorKind::MalformedResponse, "{what}");
        assert!(error.message.contains("text/html"), "{what}");
        assert!(wire.decode_models(page("Hello").as_bytes()).is_err());
    }
}

/// Between two events of every stream: one of a type that no reference has, and one that is of a known type and says
/// nothing.
fn nothing(format: Format) -> String {
    let (unknown, empty) = match format {
        Format::ChatCompletions(_) => (
            r#"{"object":"weather.report","sun":[1]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":""},"finish_reason":null}]}"#,
        ),
        Format::Responses(_) => (
            r#"{"type":"response.weather_report","sun":[1]}"#,
            r#"{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":""}"#,
        ),
        Format::Messages => (
            r#"{"type":"weather_report","sun":[1]}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":""}}"#,
        ),
        Format::Gemini(_) => (
            r#"{"weatherReport":{"sun":[1]}}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":""}],"role":"model"},"index":0}]}"#,
        ),
        Format::Cohere => (
            r#"{"type":"weather-report","sun":[1]}"#,
            r#"{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":""}}}}"#,
        ),
        // Lines have no types, only fields.
        Format::Ollama => {
            return "{\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":false,\"weather\":{\"sun\":[1]}}\n".into();
        }
        Format::Bedrock => {
            return "weatherReport {\"sun\":[1]}\ncontentBlockDelta {\"contentBlockIndex\":0,\"delta\":{\"text\":\"\"}}\n".into();
        }
        _ => panic!("{format:?} is new"),
    };
    format!("event: weather_report\ndata: {unknown}\n\ndata: {empty}\n\n")
}

#[test]
fn unknown_events_and_empty_ones_say_nothing() {
    for profile in PROFILES {
        let path = format!("{}/stream", profile.name);
        let exchange = &fixture::read(&support::fixtures(), &path).unwrap()[0];
        let answer = exchange.answer.as_ref().unwrap();
        let end = match profile.format {
            Format::Ollama | Format::Bedrock => "\n",
            _ => "\n\n",
        };
        let nothing = nothing(profile.format);
        let noisy = answer.body.replace(end, &format!("{end}{nothing}"));
        assert!(
            noisy.len() > answer.body.len() + 2 * nothing.len(),
            "{path}"
        );
        let headers: Vec<_> = answer
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let wire = profile
            .wire(&settings(profile, "http://127.0.0.1/v1"))
            .unwrap();
        let decoder = wire
            .decoder(&head(200, &answer.media_type, &headers), 1 << 20)
            .unwrap();
        let mut decoding = Decoding::new(decoder);
        let mut got = Rendering::default();
        for piece in support::body(&answer.media_type, &noisy).chunks(7) {
            decoding.push(piece);
            while let Some(event) = decoding.next() {
                got.add(&event);
            }
        }
        decoding.finish();
        while let Some(event) = decoding.next() {
            got.add(&event);
        }
        assert_eq!(got.lines(), exchange.gives, "{path}");
    }
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    for piece in body.chunks(body.len().div_ceil(20).max(1)) {
        encoder.write_all(piece).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

/// Streams, whole answers and errors, through the whole client.
#[tokio::test]
async fn what_is_packed_is_unpacked() {
    for profile in PROFILES {
        for feature in [Feature::Stream, Feature::Whole, Feature::Errors] {
            let path = format!("{}/{}", profile.name, feature.name());
            let exchanges = fixture::read(&support::fixtures(), &path).unwrap();
            // What depends on today's date is left to the fixtures' own test.
            let exchange = exchanges
                .iter()
                .find(|exchange| {
                    let answer = exchange.answer.as_ref();
                    answer.is_some_and(|answer| answer.headers.is_empty() && !answer.cut)
                })
                .unwrap_or_else(|| panic!("{path}: nothing to pack"));
            let answer = exchange.answer.as_ref().unwrap();
            let mut options = exchange.options.clone();
            options.remove("api_version");
            let Some(Ask::Chat(request)) = ask(&exchange.ask, &mut options) else {
                panic!("{path}: no chat")
            };
            let packed = gzip(&support::body(&answer.media_type, &answer.body));
            let upstream = Upstream::start().await;
            let url = format!("{}/v1", upstream.origin());
            let provider = profile
                .connect("tested", &settings(profile, &url), client())
                .unwrap();
            let serve = async {
                let mut connection = upstream.accept().await;
                let (status, media_type) = (answer.status, &answer.media_type);
                connection
                    .send(format!(
                        "HTTP/1.1 {status} x\r\ncontent-type: {media_type}\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
                    ))
                    .await;
                for piece in packed.chunks(packed.len().div_ceil(5)) {
                    if !connection.try_chunk(piece).await {
                        return;
                    }
                }
                connection.try_end().await;
            };
            let talk = async {
                let mut got = Rendering::default();
                match provider.chat(&request).await {
                    Ok(mut stream) => {
                        while let Some(event) = stream.next().await {
                            got.add(&event);
                        }
                    }
                    Err(error) => return vec![render_error(&error)],
                }
                got.lines()
            };
            let both = async { tokio::join!(talk, serve) };
            let (got, ()) = tokio::time::timeout(Duration::from_secs(20), both)
                .await
                .unwrap_or_else(|_| panic!("{path}: nothing came for 20 s"));
            assert_eq!(got, exchange.gives, "{path}");
        }
    }
}

/// Lists, vectors and counts come as one document.
#[tokio::test]
async fn so_is_a_document() {
    let upstream = Upstream::start().await;
    let provider = upstream.provider();
    let mut answers = vec![(
        gzip(br#"{"object":"list","data":[{"id":"m","object":"model"}]}"#),
        "gzip",
    )];
    answers.push((answers[0].0[..20].to_vec(), "gzip"));
    answers.push((gzip(&vec![b' '; 17 << 20]), "gzip"));
    answers.push((b"{}".to_vec(), "br"));
    for (at, (body, encoding)) in answers.iter().enumerate() {
        let serve = async {
            let mut connection = upstream.accept().await;
            let length = body.len();
            connection
                .send(format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: {encoding}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"))
                .await;
            connection.send(body).await;
        };
        let (models, ()) = tokio::join!(provider.models(), serve);
        match at {
            0 => assert_eq!(models.unwrap()[0].id, "m"),
            _ => {
                let error = models.unwrap_err();
                assert_eq!(error.kind, ErrorKind::MalformedResponse, "{error}");
                let sign = ["", "EOF", "longer than", "`br`"][at];
                assert!(error.message.contains(sign), "{error}");
                assert!(!error.to_string().contains(KEY));
            }
        }
    }
}
