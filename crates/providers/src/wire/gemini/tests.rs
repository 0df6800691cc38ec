use http::Method;

use super::*;
use crate::chat::{Content, Image, ImageSource, Message, ReasoningEffort, ToolCall};

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn wire(name: &str, settings: &Settings) -> Result<Gemini, ProviderError> {
    let profile = Profile::named(name).unwrap();
    let service = match name {
        "gemini" => GeminiService::AiStudio,
        _ => GeminiService::Vertex,
    };
    Gemini::new(profile, settings, service)
}

fn gemini() -> Gemini {
    let settings = Settings {
        key: Some("AIza-secret-of-tests".into()),
        ..Settings::default()
    };
    wire("gemini", &settings).unwrap()
}

fn vertex(region: Option<&str>) -> Result<Gemini, ProviderError> {
    let settings = Settings {
        key: Some("ya29.token-of-tests".into()),
        region: region.map(Into::into),
        project: Some("p1".into()),
        ..Settings::default()
    };
    wire("vertex", &settings)
}

fn hello(model: &str) -> ChatRequest {
    ChatRequest::new(model).with(Message::user("Hi"))
}

fn body(wire: &Gemini, request: &ChatRequest) -> serde_json::Value {
    let request = wire.chat_request(request, NOW).unwrap();
    serde_json::from_slice(request.body()).unwrap()
}

#[test]
fn the_key_is_in_a_header_and_nowhere_else() {
    let wire = gemini();
    let chat = wire.chat_request(&hello("gemini-2.5-flash"), NOW).unwrap();
    assert_eq!(
        (chat.method(), chat.uri().to_string().as_str()),
        (
            &Method::POST,
            "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
        )
    );
    assert_eq!(chat.headers()["x-goog-api-key"], "AIza-secret-of-tests");
    assert!(chat.headers()["x-goog-api-key"].is_sensitive());
    assert!(!chat.headers().contains_key("authorization"));
    assert!(!format!("{wire:?} {chat:?}").contains("secret"));
}

#[test]
fn models_may_be_named_by_their_resource() {
    let path = |wire: &Gemini, model: &str| {
        let mut request = hello(model);
        request.stream = false;
        let uri = wire.chat_request(&request, NOW).unwrap().uri().to_string();
        uri.split_once("/v1").unwrap().1.to_owned()
    };
    let studio = gemini();
    for (model, expected) in [
        ("models/gemini-x", "beta/models/gemini-x:generateContent"),
        ("tunedModels/mine", "beta/tunedModels/mine:generateContent"),
        (
            "a/../b?key=1#",
            "beta/models/a%2F..%2Fb%3Fkey%3D1%23:generateContent",
        ),
    ] {
        assert_eq!(path(&studio, model), expected);
    }
    let vertex = vertex(Some("europe-west4")).unwrap();
    let place = "/projects/p1/locations/europe-west4";
    for (model, expected) in [
        (
            "gemini-x",
            "/publishers/google/models/gemini-x:generateContent",
        ),
        (
            "publishers/google/models/gemini-x",
            "/publishers/google/models/gemini-x:generateContent",
        ),
        ("endpoints/123", "/endpoints/123:generateContent"),
    ] {
        assert_eq!(path(&vertex, model), format!("{place}{expected}"));
    }
    let error = studio.chat_request(&hello(""), NOW).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidRequest);
}

#[test]
fn locations_have_their_hosts() {
    for (region, host) in [
        (Some("us-central1"), "us-central1-aiplatform.googleapis.com"),
        (Some("global"), "aiplatform.googleapis.com"),
        (None, "aiplatform.googleapis.com"),
        (Some(" "), "aiplatform.googleapis.com"),
        (Some("eu"), "aiplatform.eu.rep.googleapis.com"),
    ] {
        let wire = vertex(region).unwrap();
        let place = region.map_or("", str::trim);
        let place = if place.is_empty() { "global" } else { place };
        let chat = wire.chat_request(&hello("gemini-x"), NOW).unwrap();
        let expected = format!("https://{host}/v1/projects/p1/locations/{place}/publishers/");
        assert!(
            chat.uri().to_string().starts_with(&expected),
            "{}",
            chat.uri()
        );
        assert_eq!(
            chat.headers()["authorization"],
            "Bearer ya29.token-of-tests"
        );
        let models = wire.models_request(NOW).unwrap();
        let expected = format!("https://{host}/v1beta1/publishers/google/models?");
        assert!(
            models.uri().to_string().starts_with(&expected),
            "{}",
            models.uri()
        );
        assert_eq!(models.headers()["x-goog-user-project"], "p1");
    }
    for region in ["a/b", "evil.example/#"] {
        assert!(vertex(Some(region)).unwrap_err().message.contains("region"));
    }
    let error = wire("vertex", &Settings::default()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Configuration);
    assert!(error.message.contains("project"), "{error}");
}

#[test]
fn a_base_url_of_ones_own_is_kept() {
    let settings = Settings {
        base_url: Some("https://proxy.example/google/".into()),
        ..Settings::default()
    };
    let wire = wire("vertex", &settings).unwrap();
    let chat = wire.chat_request(&hello("gemini-x"), NOW).unwrap();
    assert!(
        chat.uri()
            .to_string()
            .starts_with("https://proxy.example/google/publishers/google/models/gemini-x:")
    );
    let models = wire.models_request(NOW).unwrap();
    assert_eq!(
        models.uri(),
        "https://proxy.example/google/publishers/google/models?pageSize=100"
    );
}

/// A turn of the model with what is given, in a conversation with `model`.
fn turn(model: &str, content: Vec<Content>, calls: Vec<ToolCall>) -> serde_json::Value {
    let mut message = Message::assistant("");
    message.content = content;
    message.tool_calls = calls;
    let request = hello(model).with(message);
    body(&gemini(), &request)["contents"][1]["parts"].take()
}

fn call(id: &str, signature: Option<&str>) -> ToolCall {
    ToolCall {
        id: id.into(),
        name: "f".into(),
        arguments: "{}".into(),
        signature: signature.map(Into::into),
    }
}

#[test]
fn signatures_return_to_their_parts() {
    let redacted = |text: &str| Content::RedactedReasoning(text.into());
    let text = |text: &str| Content::Text(text.into());
    let parts = |content, calls| turn("gemini-2.5-pro", content, calls);
    // On the text that follows, or on one of their own where none does.
    assert_eq!(
        parts(vec![redacted("AA"), text("x"), redacted("BB")], vec![]),
        serde_json::json!([
            {"text": "x", "thoughtSignature": "AA"},
            {"text": "", "thoughtSignature": "BB"}
        ])
    );
    // On the call that follows, unless that has its own.
    assert_eq!(
        parts(vec![redacted("AA")], vec![call("1", None), call("2", None)]),
        serde_json::json!([
            {"functionCall": {"id": "1", "name": "f", "args": {}}, "thoughtSignature": "AA"},
            {"functionCall": {"id": "2", "name": "f", "args": {}}}
        ])
    );
    assert_eq!(
        parts(vec![redacted("AA")], vec![call("1", Some("BB"))]),
        serde_json::json!([
            {"text": "", "thoughtSignature": "AA"},
            {"functionCall": {"id": "1", "name": "f", "args": {}}, "thoughtSignature": "BB"}
        ])
    );
    // What another provider encrypted is no base64.
    assert_eq!(
        parts(vec![redacted("{\"type\":\"x\"}"), text("x")], vec![]),
        serde_json::json!([{"text": "x"}])
    );
}

#[test]
fn gemini_3_gets_a_word_where_a_signature_was_lost() {
    let calls = || vec![call("1", None), call("2", None)];
    let signature =
        |model: &str, at: usize| turn(model, vec![], calls())[at]["thoughtSignature"].clone();
    for model in [
        "gemini-3-pro-preview",
        "gemini-3.8-flash",
        "gemini-12",
        "gemini-flash-latest",
    ] {
        assert_eq!(
            signature(model, 0),
            "skip_thought_signature_validator",
            "{model}"
        );
        assert_eq!(signature(model, 1), serde_json::Value::Null, "{model}");
    }
    for model in [
        "gemini-2.5-pro",
        "gemini-2.0-flash",
        "gemma-3-27b-it",
        "gemini-1.5-pro",
    ] {
        assert_eq!(signature(model, 0), serde_json::Value::Null, "{model}");
    }
}

#[test]
fn ids_that_were_made_here_are_not_sent_back() {
    let id = made_id("aBc-_9", 2);
    assert_eq!(id, "gemini_aBc-_9_2");
    let parts = turn("gemini-2.5-pro", vec![], vec![call(&id, None)]);
    assert_eq!(
        parts[0]["functionCall"],
        serde_json::json!({"name": "f", "args": {}})
    );
}

#[test]
fn arguments_and_results_become_objects() {
    let mut broken = call("1", None);
    broken.arguments = "{\"a\":".into();
    let mut message = Message::assistant("");
    message.content.clear();
    message.tool_calls = vec![broken];
    let request = hello("gemini-2.5-pro")
        .with(message)
        .with(Message::tool_result("1", "[1]"));
    let body = body(&gemini(), &request);
    assert_eq!(
        body["contents"][1]["parts"][0]["functionCall"]["args"],
        serde_json::json!({"arguments": "{\"a\":"})
    );
    assert_eq!(
        body["contents"][2]["parts"][0]["functionResponse"]["response"],
        serde_json::json!({"output": "[1]"})
    );
}

#[test]
fn pictures_may_be_data_urls_and_results() {
    let picture = |source| {
        Content::Image(Image {
            source,
            detail: None,
        })
    };
    let inline = serde_json::json!({"inlineData": {"mimeType": "image/webp", "data": "AA=="}});
    let mut asked = Message::user("");
    asked.content = vec![picture(ImageSource::Url(
        "data:image/webp;base64,AA==".into(),
    ))];
    let mut calls = Message::assistant("");
    calls.tool_calls = vec![call("1", None)];
    let mut result = Message::tool_result("1", "Here.");
    result.content.push(picture(ImageSource::Base64 {
        media_type: "image/webp".into(),
        data: "AA==".into(),
    }));
    let request = ChatRequest::new("gemini-3.8-flash")
        .with(asked)
        .with(calls)
        .with(result);
    let mut body = body(&gemini(), &request);
    assert_eq!(body["contents"][0]["parts"], serde_json::json!([inline]));
    assert_eq!(
        body["contents"][2]["parts"][0]["functionResponse"].take(),
        serde_json::json!({"id": "1", "name": "f", "response": {"output": "Here."}, "parts": [inline]})
    );
}

#[test]
fn vertex_must_know_the_type_of_a_picture() {
    let request = |url: &str| {
        let mut message = Message::user("");
        message.content = vec![Content::Image(Image {
            source: ImageSource::Url(url.into()),
            detail: None,
        })];
        ChatRequest::new("gemini-x").with(message)
    };
    let vertex = vertex(None).unwrap();
    let send = |wire: &Gemini, url: &str| wire.chat_request(&request(url), NOW);
    assert!(send(&vertex, "gs://bucket/a.JPG?x=.y#z").is_ok());
    let error = send(&vertex, "https://h/cat?token=secret").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(!error.message.contains("secret"));
    assert!(send(&gemini(), "https://h/cat").is_ok());
    let error = send(&gemini(), "data:text/plain,x").unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidRequest);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let wire = gemini();
    let refused = |request: &ChatRequest| {
        let error = wire.chat_request(request, NOW).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidRequest);
        error.message
    };
    assert!(refused(&ChatRequest::new("gemini-x")).contains("no messages"));
    let lost = hello("gemini-x").with(Message::tool_result("none", "x"));
    assert!(refused(&lost).contains("`none`"));
    let mut infinite = hello("gemini-x");
    infinite.top_p = Some(f64::NAN);
    assert!(refused(&infinite).contains("finite"));
}

#[test]
fn thinking_is_asked_for_in_the_models_own_terms() {
    let config = |model: &str, effort, budget| {
        let mut request = hello(model);
        request.reasoning = effort;
        request.reasoning_budget = budget;
        body(&gemini(), &request)["generationConfig"]["thinkingConfig"].take()
    };
    let level = |model: &str, effort| config(model, Some(effort), None)["thinkingLevel"].take();
    assert_eq!(level("gemini-3.8-flash", ReasoningEffort::None), "LOW");
    assert_eq!(
        level("gemini-3-flash-preview", ReasoningEffort::None),
        "MINIMAL"
    );
    assert_eq!(
        level("gemini-3.1-pro-preview", ReasoningEffort::Medium),
        "MEDIUM"
    );
    assert_eq!(
        level("gemini-pro-latest", ReasoningEffort::ExtraHigh),
        "HIGH"
    );
    assert_eq!(
        config("gemini-3.8-flash", None, Some(2_000))["thinkingLevel"],
        "LOW"
    );
    for (model, asked, expected) in [
        ("gemini-2.5-pro", 0, 128),
        ("gemini-2.5-pro", 100_000, 32_768),
        ("gemini-2.5-flash", 0, 0),
        ("gemini-2.5-flash", 7, 7),
        ("gemini-2.5-flash-lite", 0, 0),
        ("gemini-2.5-flash-lite", 7, 512),
    ] {
        let config = config(model, None, Some(asked));
        assert_eq!(config["thinkingBudget"], expected, "{model}");
        assert_eq!(config["includeThoughts"], asked > 0, "{model}");
    }
    let never = config("gemini-2.0-flash", Some(ReasoningEffort::High), None);
    assert_eq!(never, serde_json::Value::Null);
}

#[test]
fn long_seeds_fold() {
    let seed = |seed| {
        let mut request = hello("gemini-x");
        request.seed = Some(seed);
        body(&gemini(), &request)["generationConfig"]["seed"]
            .as_i64()
            .unwrap()
    };
    assert_eq!((seed(7), seed(-7)), (7, -7));
    assert_eq!(seed(i64::MAX), seed(i64::MAX));
    assert!(i32::try_from(seed(1 << 40)).is_ok());
}

#[test]
fn vectors_come_in_batches_that_the_service_takes() {
    let vertex = vertex(None).unwrap();
    assert_eq!(gemini().embeddings_batch("gemini-embedding-001"), 100);
    assert_eq!(vertex.embeddings_batch("gemini-embedding-001"), 1);
    assert_eq!(vertex.embeddings_batch("gemini-embedding-2"), 1);
    assert_eq!(vertex.embeddings_batch("text-embedding-005"), 9);
}
