//! A conversation that goes on at another provider: the proofs of one provider's thoughts never reach another.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, reason = "this test uses a part")]
#[path = "conformance/ask.rs"]
mod ask;
#[allow(dead_code, reason = "this test uses a part")]
#[path = "conformance/fixture.rs"]
mod fixture;
mod support;

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use ask::{Ask, ask};
use lapce_ai_providers::{
    ChatRequest, Content, Feature, Format, HttpClient, HttpProvider, Message, PROFILES, Profile,
    Provider, Role,
};
use serde_json::Value;
use support::{Upstream, client, settings};

/// What one provider answered, and the proofs in it as it sent them.
struct Turn {
    profile: &'static Profile,
    message: Message,
    proofs: Vec<String>,
}

fn connect(profile: &Profile, upstream: &Upstream) -> HttpProvider {
    static CLIENT: LazyLock<HttpClient> = LazyLock::new(client);
    let url = format!("{}/v1", upstream.origin());
    profile
        .connect(profile.name, &settings(profile, &url), CLIENT.clone())
        .unwrap()
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .unwrap()
}

/// The answers of a profile's fixtures that have proofs in them, through the whole client.
async fn turns(profile: &'static Profile) -> Vec<Turn> {
    let mut turns = Vec::new();
    for feature in [Feature::Reasoning, Feature::Tools] {
        if !profile.features.has(feature) {
            continue;
        }
        let path = format!("{}/{}", profile.name, feature.name());
        for exchange in fixture::read(&support::fixtures(), &path).unwrap() {
            let Some(answer) = exchange.answer.filter(|answer| answer.status == 200) else {
                continue;
            };
            let mut options = exchange.options.clone();
            options.remove("api_version");
            let Some(Ask::Chat(request)) = ask(&exchange.ask, &mut options) else {
                continue;
            };
            let upstream = Upstream::start().await;
            let provider = connect(profile, &upstream);
            let body = support::body(&answer.media_type, &answer.body);
            let serve = async {
                let mut connection = upstream.accept().await;
                let (media_type, length) = (&answer.media_type, body.len());
                connection
                    .send(format!("HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\n\r\n"))
                    .await;
                connection.send(&body).await;
            };
            let talk = async { provider.chat(&request).await?.collect().await };
            let (response, ()) = in_time(async { tokio::join!(talk, serve) }).await;
            let Ok(response) = response else { continue };
            let message = response.into_message();
            let proofs: Vec<_> = proofs(&message)
                .map(|proof| {
                    let own = proof.strip_prefix(profile.name).unwrap();
                    own.strip_prefix('/').unwrap().to_owned()
                })
                .collect();
            if !proofs.is_empty() {
                turns.push(Turn {
                    profile,
                    message,
                    proofs,
                });
            }
        }
    }
    turns
}

fn proofs(message: &Message) -> impl Iterator<Item = &str> {
    let thoughts = message.content.iter().filter_map(|content| match content {
        Content::Reasoning { signature, .. } => signature.as_deref(),
        Content::RedactedReasoning(data) => Some(data),
        _ => None,
    });
    let calls = message.tool_calls.iter();
    thoughts.chain(calls.filter_map(|call| call.signature.as_deref()))
}

/// The body of the request that goes on after `turn`.
async fn goes_on(turn: &Turn, profile: &Profile, upstream: &Upstream) -> Value {
    let mut request = ChatRequest::new("some-model")
        .with(Message::user("Hello"))
        .with(turn.message.clone());
    for call in &turn.message.tool_calls {
        request = request.with(Message {
            role: Role::Tool,
            content: vec![Content::Text("42".into())],
            tool_calls: Vec::new(),
            tool_call_id: Some(call.id.clone()),
        });
    }
    let request = request.with(Message::user("And now?"));
    let provider = connect(profile, upstream);
    let serve = async {
        let mut connection = upstream.accept().await;
        let body = std::mem::take(&mut connection.body);
        connection
            .answer("400 Bad Request", "connection: close\r\n", "{}")
            .await;
        body
    };
    let both = async { tokio::join!(provider.chat(&request), serve) };
    let (_, body) = in_time(both).await;
    serde_json::from_str(&body).unwrap()
}

/// Whether `proof` stands anywhere in `value`: as a text, or as the object that it is.
fn has(value: &Value, proof: &str) -> bool {
    let object: Option<Value> = serde_json::from_str(proof).ok();
    if object.as_ref() == Some(value) {
        return true;
    }
    match value {
        Value::String(text) => text.contains(proof),
        Value::Array(values) => values.iter().any(|value| has(value, proof)),
        Value::Object(fields) => fields.values().any(|value| has(value, proof)),
        _ => false,
    }
}

#[tokio::test]
async fn proofs_go_back_to_their_own_provider_and_to_nobody_else() {
    let upstream = Upstream::start().await;
    let mut proven = BTreeSet::new();
    for profile in PROFILES {
        for turn in turns(profile).await {
            for other in PROFILES {
                // Perplexity refuses tools before anything is sent.
                let tools = !turn.message.tool_calls.is_empty();
                if tools && !other.features.has(Feature::Tools) {
                    continue;
                }
                let body = goes_on(&turn, other, &upstream).await;
                for proof in &turn.proofs {
                    let own = other.name == turn.profile.name;
                    let (from, to) = (turn.profile.name, other.name);
                    assert_eq!(has(&body, proof), own, "{from} -> {to}: {proof}\n{body}");
                    let tag = format!("{from}/{proof}");
                    assert!(!has(&body, &tag), "{from} -> {to}: {tag}");
                }
            }
            proven.insert(profile.name);
        }
    }
    // Each format with proofs has had its turn.
    let with_proofs = |profile: &&Profile| {
        profile.features.has(Feature::ReasoningBack)
            && match profile.format {
                Format::ChatCompletions(_) => profile.name == "openrouter",
                Format::Cohere | Format::Ollama => false,
                _ => true,
            }
    };
    let expected: BTreeSet<_> = PROFILES
        .iter()
        .filter(with_proofs)
        .map(|profile| profile.name)
        .collect();
    assert_eq!(proven, expected);
}
