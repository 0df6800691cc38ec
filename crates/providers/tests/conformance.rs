//! Every cell of the table of providers, proven by a fixture: see `fixtures/README.md`.
//!
//! `CONFORMANCE=anthropic/tools cargo test -p lapce-ai-providers --test conformance` runs those whose path has this in it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "conformance/ask.rs"]
mod ask;
#[path = "conformance/fixture.rs"]
mod fixture;
#[path = "conformance/render.rs"]
mod render;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ask::{Ask, ask};
use fixture::{Answer, Exchange, Sends};
use http::response::Parts;
use lapce_ai_providers::{
    Auth, Decoding, Feature, PROFILES, Profile, Provider, ProviderError, Settings, Wire,
};
use render::{Rendering, render_embeddings, render_error, render_model};
use serde_json::Value;
use support::{KEY, Upstream, client};

/// The most places at which one stream is cut in two.
const MOST_CUTS: usize = 1500;
const LIMIT: usize = 1 << 20;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn settings(profile: &Profile, exchange: &Exchange, base_url: Option<String>) -> Settings {
    let own = profile.base_url.is_empty() && base_url.is_none();
    Settings {
        base_url: base_url.or(own.then(|| "https://base.example".into())),
        key: Some(KEY.into()),
        region: Some("us-east-1".into()),
        project: Some("p1".into()),
        api_version: exchange.options.get("api_version").cloned(),
        ..Settings::default()
    }
}

/// What `{base}` stands for.
fn base(profile: &Profile) -> String {
    let url = profile
        .base_url
        .replace("{region}", "us-east-1")
        .replace("{project}", "p1");
    if url.is_empty() {
        "https://base.example".into()
    } else {
        url
    }
}

/// A moment for retry dates and signatures: Wed, 21 Oct 2026 07:28:00 GMT.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_792_567_680)
}

#[test]
fn the_table_says_yes_where_a_fixture_proves_it_and_nowhere_else() {
    let mut wrong = Vec::new();
    for profile in PROFILES {
        let folder = fixtures().join(profile.name);
        let mut files: BTreeSet<String> = match fs::read_dir(&folder) {
            Ok(files) => files
                .map(|file| file.unwrap().file_name().into_string().unwrap())
                .collect(),
            Err(_) => BTreeSet::new(),
        };
        for feature in Feature::ALL {
            let there = files.remove(&format!("{}.txt", feature.name()));
            if there != profile.features.has(*feature) {
                let (name, feature) = (profile.name, feature.name());
                wrong.push(format!(
                    "{name}/{feature}: fixture {there}, table {}",
                    !there
                ));
            }
        }
        wrong.extend(
            files
                .iter()
                .map(|file| format!("{}/{file}: no feature is called so", profile.name)),
        );
    }
    for folder in fs::read_dir(fixtures()).unwrap() {
        let folder = folder.unwrap();
        let name = folder.file_name().into_string().unwrap();
        if folder.path().is_dir() && Profile::named(&name).is_none() {
            wrong.push(format!("{name}: no profile is called so"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn every_fixture_holds() {
    let only = std::env::var("CONFORMANCE").unwrap_or_default();
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for profile in PROFILES {
        for feature in Feature::ALL {
            let path = format!("{}/{}", profile.name, feature.name());
            if !path.contains(&only) || !profile.features.has(*feature) {
                continue;
            }
            let exchanges = match fixture::read(&fixtures(), &path) {
                Ok(exchanges) => exchanges,
                Err(why) => {
                    wrong.push(why);
                    continue;
                }
            };
            for exchange in exchanges {
                if let Err(why) = check(profile, &exchange).await {
                    wrong.push(format!("{path}:{}: {}: {why}", exchange.line, exchange.ask));
                }
                checked += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    println!("{checked} exchanges");
    assert!(checked > 0, "no fixture is called {only}");
}

async fn check(profile: &Profile, exchange: &Exchange) -> Result<(), String> {
    let mut options = exchange.options.clone();
    options.remove("api_version");
    let ask = ask(&exchange.ask, &mut options).ok_or("no request is called so")?;
    if let Some((name, _)) = options.first_key_value() {
        return Err(format!("no option is called {name}"));
    }
    let wire = profile
        .wire(&settings(profile, exchange, None))
        .map_err(|error| error.to_string())?;
    let request = match &ask {
        Ask::Chat(request) => wire.chat_request(request, now()),
        Ask::Count(request) => wire.count_request(request, now()),
        Ask::Embed(request) => wire.embeddings_request(request, now()),
        Ask::Models => wire.models_request(now()),
    };
    let request = match request {
        Ok(request) => request,
        // Some things can only be refused before they are sent.
        Err(error) if exchange.answer.is_none() && exchange.sends.is_none() => {
            return same(&[render_error(&error)], &exchange.gives, "refused");
        }
        Err(error) => return Err(error.to_string()),
    };
    if let Some(sends) = &exchange.sends {
        check_request(profile, sends, &request)?;
    }
    match &exchange.answer {
        Some(answer) => {
            check_answer(&wire, &ask, answer, &exchange.gives)?;
            over_a_socket(profile, exchange, &ask, answer).await
        }
        None if exchange.sends.is_none() => Err("it was to be refused, and was not".into()),
        None => Ok(()),
    }
}

fn check_request(
    profile: &Profile,
    sends: &Sends,
    request: &http::Request<bytes::Bytes>,
) -> Result<(), String> {
    let url = sends.url.replace("{base}", &base(profile));
    if request.method().as_str() != sends.method || request.uri() != url.as_str() {
        return Err(format!(
            "sent {} {}, not {} {url}",
            request.method(),
            request.uri(),
            sends.method
        ));
    }
    let header = |name: &str| {
        let value = request.headers().get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    let mut expected = sends.headers.clone();
    expected.push(("accept-encoding".into(), Some("identity".into())));
    let json = (sends.method == "POST").then(|| "application/json".into());
    expected.push(("content-type".into(), json));
    match profile.auth {
        Auth::Bearer => expected.push(("authorization".into(), Some(format!("Bearer {KEY}")))),
        Auth::Header(name) | Auth::HeaderOrToken(name) => {
            expected.push((name.into(), Some(KEY.into())));
        }
        _ => {}
    }
    for (name, value) in expected {
        if header(&name) != value {
            return Err(format!(
                "header {name} is {:?}, not {value:?}",
                header(&name)
            ));
        }
    }
    let body = |bytes: &[u8]| -> Result<Value, String> {
        match bytes.trim_ascii() {
            b"" => Ok(Value::Null),
            bytes => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
        }
    };
    let sent = body(request.body())?;
    let wanted = body(sends.body.as_bytes()).map_err(|error| format!("the fixture: {error}"))?;
    if sent != wanted {
        return Err(format!("sent\n{sent}\nnot\n{wanted}"));
    }
    Ok(())
}

fn head(answer: &Answer) -> Parts {
    let mut head = http::Response::builder().status(answer.status);
    if !answer.media_type.is_empty() {
        head = head.header("content-type", &answer.media_type);
    }
    for (name, value) in &answer.headers {
        head = head.header(name, value);
    }
    head.body(()).unwrap().into_parts().0
}

fn check_answer(
    wire: &Arc<dyn Wire>,
    ask: &Ask,
    answer: &Answer,
    gives: &[String],
) -> Result<(), String> {
    let (head, body) = (head(answer), body(answer));
    if !head.status.is_success() {
        let error = wire.decode_error(&head, &body, now());
        return same(&[render_error(&error)], gives, "in one piece");
    }
    let or_error = |result: Result<Vec<String>, ProviderError>| {
        result.unwrap_or_else(|error| vec![render_error(&error)])
    };
    let got = match ask {
        Ask::Chat(_) => return check_chat(wire, &head, &body, answer, gives),
        Ask::Count(_) => or_error(
            wire.decode_count(&body)
                .map(|tokens| vec![format!("tokens {tokens}")]),
        ),
        Ask::Embed(_) => or_error(
            wire.decode_embeddings(&body)
                .map(|embeddings| vec![render_embeddings(&embeddings)]),
        ),
        Ask::Models => or_error(
            wire.decode_models(&body)
                .map(|models| models.iter().map(render_model).collect()),
        ),
    };
    same(&got, gives, "in one piece")
}

fn check_chat(
    wire: &Arc<dyn Wire>,
    head: &Parts,
    body: &[u8],
    answer: &Answer,
    gives: &[String],
) -> Result<(), String> {
    let check = |what: &str, pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut got = Rendering::default();
        match wire.decoder(head, LIMIT) {
            Ok(decoder) => {
                let mut decoding = Decoding::new(decoder);
                for piece in pieces {
                    decoding.push(piece);
                    while let Some(event) = decoding.next() {
                        got.add(&event);
                    }
                }
                decoding.finish();
                while let Some(event) = decoding.next() {
                    got.add(&event);
                }
            }
            Err(error) => got.add(&Err(error)),
        }
        same(&got.lines(), gives, what)
    };
    check("in one piece", &mut std::iter::once(body))?;
    check("byte by byte", &mut body.chunks(1))?;
    let step = body.len().div_ceil(MOST_CUTS).max(1);
    for at in (0..body.len()).step_by(step) {
        let (first, second) = body.split_at(at);
        check(&format!("cut at {at}"), &mut [first, second].into_iter())?;
    }
    if answer.media_type == "text/event-stream" {
        let crlf = answer.body.replace('\n', "\r\n");
        check("with CRLF", &mut crlf.as_bytes().chunks(5))?;
        let cr = answer.body.replace('\n', "\r");
        check("with CR", &mut cr.as_bytes().chunks(5))?;
        let noisy = format!(
            "\u{FEFF}: hello\nretry: 5\n\n{}",
            answer.body.replace("\n\n", "\n\n: ping\n\nid: 7\n\n")
        );
        check("with comments", &mut noisy.as_bytes().chunks(7))?;
    }
    Ok(())
}

/// The same through the whole client: a real connection to a server that sends these bytes.
async fn over_a_socket(
    profile: &Profile,
    exchange: &Exchange,
    ask: &Ask,
    answer: &Answer,
) -> Result<(), String> {
    let gives = exchange.gives.as_slice();
    // What depends on today's date is checked without.
    if answer
        .headers
        .iter()
        .any(|(_, value)| value.contains("GMT"))
    {
        return Ok(());
    }
    let upstream = Upstream::start().await;
    let url = format!("{}/v1", upstream.origin());
    let provider = profile
        .connect("tested", &settings(profile, exchange, Some(url)), client())
        .map_err(|error| error.to_string())?;
    let wire = profile.wire(&settings(profile, exchange, None)).unwrap();
    if let Ask::Embed(request) = ask
        && wire.embeddings_batch(&request.model) < request.input.len()
    {
        return Ok(());
    }
    let body = body(answer);
    if let Ask::Models = ask
        && answer.status == 200
        && let Ok(Some(_)) = wire.next_models_request(&body, now())
    {
        // The client would go on to the next page.
        return Ok(());
    }
    let mut headers = format!("content-type: {}\r\n", answer.media_type);
    for (name, value) in &answer.headers {
        headers.push_str(&format!("{name}: {value}\r\n"));
    }
    let serve = async {
        let mut connection = upstream.accept().await;
        let status = http::StatusCode::from_u16(answer.status).unwrap();
        connection
            .send(format!(
                "HTTP/1.1 {status}\r\n{headers}transfer-encoding: chunked\r\n\r\n"
            ))
            .await;
        // A client that has seen enough may have gone.
        for piece in body.chunks(body.len().div_ceil(5).max(1)) {
            if !connection.try_chunk(piece).await {
                return;
            }
        }
        if !answer.cut {
            connection.try_end().await;
        }
    };
    let (got, ()) = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::join!(talk(&provider, ask), serve)
    })
    .await
    .map_err(|_| "over a socket: nothing came for 20 s")?;
    if !answer.cut {
        return same(&got, gives, "over a socket");
    }
    // How the connection was lost is told in other words then.
    let kinds = |lines: &[String]| -> Vec<String> {
        let kind = |line: &String| match line.split_once(" message=") {
            Some((kind, _)) if line.starts_with("error ") => kind.to_owned(),
            _ => line.clone(),
        };
        lines.iter().map(kind).collect()
    };
    same(&kinds(&got), &kinds(gives), "over a socket")
}

async fn talk(provider: &impl Provider, ask: &Ask) -> Vec<String> {
    let or_error = |result: Result<Vec<String>, ProviderError>| {
        result.unwrap_or_else(|error| vec![render_error(&error)])
    };
    match ask {
        Ask::Chat(request) => {
            let mut got = Rendering::default();
            match provider.chat(request).await {
                Ok(mut stream) => {
                    while let Some(event) = stream.next().await {
                        got.add(&event);
                    }
                }
                Err(error) => got.add(&Err(error)),
            }
            got.lines()
        }
        Ask::Count(request) => or_error(
            provider
                .count_tokens(request)
                .await
                .map(|tokens| vec![format!("tokens {tokens}")]),
        ),
        Ask::Embed(request) => or_error(
            provider
                .embed(request)
                .await
                .map(|embeddings| vec![render_embeddings(&embeddings)]),
        ),
        Ask::Models => or_error(
            provider
                .models()
                .await
                .map(|models| models.iter().map(render_model).collect()),
        ),
    }
}

/// The bytes of an answer's body.
fn body(answer: &Answer) -> Vec<u8> {
    let mut body = if answer.media_type == "application/vnd.amazon.eventstream" {
        support::aws::stream(&answer.body)
    } else {
        answer.body.clone().into_bytes()
    };
    if answer.cut {
        // Not after the last line, but in it.
        body.pop();
    }
    body
}

fn same(got: &[String], wanted: &[String], how: &str) -> Result<(), String> {
    if got == wanted {
        return Ok(());
    }
    Err(format!(
        "{how}: got\n  {}\nnot\n  {}",
        got.join("\n  "),
        wanted.join("\n  ")
    ))
}
