//! From a client's JSON to the provider's and back, through a real daemon: nothing that the protocol can say is lost.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::thread;

use lapce_ai_client::{Client, MessageType, Options, RequestOptions, ai};
use serde_json::{Value, json};
use support::{Canned, Home, OpenAi};

/// A daemon whose one provider is `server`, spoken to as `ty`, and asked once for each request.
fn home(server: &OpenAi, ty: &str) -> Home {
    Home::new(&format!(
        "[retries]\nattempts = 1\n[providers.up]\ntype = '{ty}'\nbase_url = '{}'\napi_key = 'sk-test-12345'\n",
        server.url()
    ))
}

/// Sends `request` as it stands, and gives what the provider got and what came back.
async fn exchange(
    home: &Home,
    server: OpenAi,
    kind: MessageType,
    request: &Value,
    answer: Canned,
) -> (OpenAi, Value, Vec<Value>) {
    let upstream = thread::spawn(move || {
        let (_, body, mut stream) = server.request();
        answer.send(&mut stream);
        (server, serde_json::from_str(&body).unwrap())
    });
    let client = Client::connect(Options::new(home.socket())).await.unwrap();
    let body = serde_json::to_vec(request).unwrap();
    let mut items = client
        .stream(kind, &body, &RequestOptions::default())
        .await
        .unwrap();
    let mut answers = Vec::new();
    while let Some(item) = items.next().await {
        answers.push(serde_json::from_slice(&item.unwrap()).unwrap());
    }
    client.close().await;
    let (server, sent) = upstream.join().unwrap();
    (server, sent, answers)
}

fn done() -> Canned {
    Canned::stream(&[
        json!({"id": "1", "choices": [{"delta": {"content": "ok"}, "finish_reason": "stop"}]}),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn all_that_can_be_asked_reaches_the_provider() {
    let server = OpenAi::new();
    let home = home(&server, "openrouter");
    let _daemon = home.serve(&[]);
    let schema = json!({"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}});
    let request = json!({
        "model": "up/m-1", "systemPrompt": "Be brief.", "temperature": 0.5, "maxTokens": 99, "topP": 0.25,
        "stop": ["END"], "seed": 7, "user": "u-1", "metadata": {"team": "a"}, "parallelToolCalls": false,
        "toolChoice": {"name": "add"}, "reasoning": {"budgetTokens": 2048},
        "cacheControl": {"systemPrompt": true, "tools": true},
        "responseFormat": {"type": "jsonSchema", "name": "n", "schema": schema, "strict": true},
        "tools": [{"name": "add", "description": "adds", "parameters": schema, "strict": true}],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "long", "cacheControl": true},
                {"type": "image", "url": "https://x/y.png", "detail": "low"},
                {"type": "image", "mediaType": "image/png", "data": "AA=="}]},
            {"role": "assistant", "content": [
                {"type": "reasoning", "text": "hm", "signature": "up/SIG"},
                {"type": "redactedReasoning", "data": "up/ENC"},
                {"type": "text", "text": "I add."}],
                "toolCalls": [{"id": "c1", "name": "add", "parameters": {"z": "1", "a": 2}}]},
            {"role": "tool", "content": "4", "toolCallId": "c1"}],
    });
    let (_, sent, _) = exchange(&home, server, MessageType::CHAT, &request, done()).await;
    let expected = json!({
        "model": "m-1", "temperature": 0.5, "max_tokens": 99, "top_p": 0.25, "stop": ["END"], "seed": 7, "user": "u-1",
        "parallel_tool_calls": false, "tool_choice": {"type": "function", "function": {"name": "add"}},
        "reasoning": {"max_tokens": 2048}, "stream": true, "stream_options": {"include_usage": true},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}},
        "tools": [{"type": "function",
            "function": {"name": "add", "description": "adds", "parameters": schema, "strict": true}}],
        "messages": [
            {"role": "system", "content": [
                {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]},
            {"role": "user", "content": [
                {"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
            {"role": "assistant", "content": "I add.",
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "hm", "signature": "SIG"},
                    {"type": "reasoning.encrypted", "data": "ENC"}],
                "tool_calls": [{"id": "c1", "type": "function",
                    "function": {"name": "add", "arguments": "{\"z\":\"1\",\"a\":2}"}}]},
            {"role": "tool", "content": "4", "tool_call_id": "c1"}],
    });
    assert_eq!(sent, expected, "sent\n{sent:#}");
    let schema_sent = sent["tools"][0]["function"]["parameters"].to_string();
    assert_eq!(schema_sent, schema.to_string(), "in the caller's order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn choices_forms_and_efforts_have_their_words() {
    let server = OpenAi::new();
    let home = home(&server, "compatible");
    let _daemon = home.serve(&[]);
    let mut server = Some(server);
    for (field, value, name, expected) in [
        ("toolChoice", json!("auto"), "tool_choice", json!("auto")),
        ("toolChoice", json!("none"), "tool_choice", json!("none")),
        (
            "toolChoice",
            json!("required"),
            "tool_choice",
            json!("required"),
        ),
        (
            "responseFormat",
            json!({"type": "text"}),
            "response_format",
            Value::Null,
        ),
        (
            "responseFormat",
            json!({"type": "jsonObject"}),
            "response_format",
            json!({"type": "json_object"}),
        ),
        (
            "reasoning",
            json!({"effort": "none"}),
            "reasoning_effort",
            json!("none"),
        ),
        (
            "reasoning",
            json!({"effort": "xhigh"}),
            "reasoning_effort",
            json!("xhigh"),
        ),
        (
            "reasoning",
            json!({"budgetTokens": 3000}),
            "reasoning_effort",
            json!("low"),
        ),
        ("stream", json!(false), "stream", Value::Null),
    ] {
        let mut request = json!({"model": "up/m", "messages": [{"role": "user", "content": "x"}],
            "tools": [{"name": "t", "parameters": {}}]});
        request[field] = value.clone();
        let answer = if field == "stream" {
            Canned::json(
                &json!({"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]}),
            )
        } else {
            done()
        };
        let used = server.take().unwrap();
        let (used, sent, _) = exchange(&home, used, MessageType::CHAT, &request, answer).await;
        server = Some(used);
        assert_eq!(sent[name], expected, "{field} {value}");
    }
}

/// Everything at once, as OpenRouter streams it.
fn rich_stream() -> Canned {
    let delta = |delta: Value| json!({"id": "gen-1", "model": "m-1.1", "choices": [{"index": 0, "delta": delta}]});
    Canned::stream(&[
        delta(json!({"reasoning_details": [{"type": "reasoning.text", "text": "I add"}]})),
        delta(
            json!({"reasoning_details": [{"type": "reasoning.text", "text": " it.", "signature": "SIG"}]}),
        ),
        delta(json!({"reasoning_details": [{"type": "reasoning.encrypted", "data": "ENC"}]})),
        delta(json!({"content": "So:"})),
        delta(
            json!({"annotations": [{"type": "url_citation", "url_citation": {"url": "https://x", "title": "X"}}]}),
        ),
        delta(
            json!({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": "{\"a\""}}]}),
        ),
        delta(
            json!({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}},
            {"index": 1, "id": "c2", "function": {"name": "add", "arguments": "{}"}}]}),
        ),
        json!({"id": "gen-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}),
        json!({"id": "gen-1", "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 7},
            "completion_tokens_details": {"reasoning_tokens": 3}}}),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_the_provider_says_comes_out_and_goes_back_in() {
    let server = OpenAi::new();
    let home = home(&server, "openrouter");
    let _daemon = home.serve(&[]);
    let ask = |messages: Value, stream: bool| {
        json!({"model": "up/m", "messages": messages, "stream": stream,
            "tools": [{"name": "add", "parameters": {}}]})
    };
    let user = json!({"role": "user", "content": "1+1?"});
    let (server, _, events) = exchange(
        &home,
        server,
        MessageType::CHAT,
        &ask(json!([user]), true),
        rich_stream(),
    )
    .await;
    assert_eq!(
        Value::from(events),
        json!([
            {"type": "start", "provider": "up", "model": "m-1.1", "id": "gen-1"},
            {"type": "reasoning", "text": "I add"},
            {"type": "reasoning", "text": " it.", "signature": "up/SIG"},
            {"type": "redactedReasoning", "data": "up/{\"type\":\"reasoning.encrypted\",\"data\":\"ENC\"}"},
            {"type": "text", "text": "So:"},
            {"type": "citation", "url": "https://x", "title": "X"},
            {"type": "toolCall", "index": 0, "id": "c1", "name": "add", "arguments": "{\"a\""},
            {"type": "toolCall", "index": 0, "arguments": ":1}"},
            {"type": "toolCall", "index": 1, "id": "c2", "name": "add", "arguments": "{}"},
            {"type": "usage", "inputTokens": 20, "outputTokens": 9, "cachedInputTokens": 5, "cacheWriteTokens": 7,
                "reasoningTokens": 3},
            {"type": "finish", "reason": "toolCalls"},
        ])
    );

    // The same in one piece: its parts are what the next turn begins with.
    let whole = Canned::json(
        &json!({"id": "gen-2", "model": "m-1.1", "choices": [{"message": {
        "content": "So:",
        "reasoning_details": [{"type": "reasoning.text", "text": "I add it.", "signature": "SIG"},
            {"type": "reasoning.encrypted", "data": "ENC"}],
        "tool_calls": [{"id": "c1", "function": {"name": "add", "arguments": "{\"a\":1}"}}]},
        "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}),
    );
    let (server, _, answers) = exchange(
        &home,
        server,
        MessageType::CHAT,
        &ask(json!([user]), false),
        whole,
    )
    .await;
    let answer: ai::AIResponse = serde_json::from_value(answers[0].clone()).unwrap();
    assert_eq!(
        (answer.id.as_deref(), answer.reasoning.as_deref()),
        (Some("gen-2"), Some("I add it."))
    );
    let mut parts = answer.thoughts.unwrap();
    parts.push(ai::Part::Text {
        text: answer.content,
        cache_control: None,
    });
    let turn = json!({"role": "assistant", "content": parts, "toolCalls": answer.tool_calls});
    let result = json!({"role": "tool", "content": "2", "toolCallId": "c1"});
    let next = ask(json!([user, turn, result]), true);
    let (_, sent, _) = exchange(&home, server, MessageType::CHAT, &next, done()).await;
    assert_eq!(
        sent["messages"][1],
        json!({"role": "assistant", "content": "So:",
            "reasoning_details": [{"type": "reasoning.text", "text": "I add it.", "signature": "SIG"},
                {"type": "reasoning.encrypted", "data": "ENC"}],
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"a\":1}"}}]})
    );
}

/// Events as Anthropic streams them.
fn messages_stream(events: &[Value]) -> Canned {
    let event = |event: &Value| {
        format!(
            "event: {}\ndata: {event}\n\n",
            event["type"].as_str().unwrap()
        )
    };
    Canned {
        body: events.iter().map(event).collect(),
        ..Canned::stream(&[])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn thoughts_and_marks_go_their_own_way_where_the_format_is_another() {
    let server = OpenAi::new();
    let home = home(&server, "anthropic");
    let _daemon = home.serve(&[]);
    let block = |index: u32, block: Value| json!({"type": "content_block_start", "index": index, "content_block": block});
    let delta = |index: u32, delta: Value| json!({"type": "content_block_delta", "index": index, "delta": delta});
    let stop = |index: u32| json!({"type": "content_block_stop", "index": index});
    let answer = messages_stream(&[
        json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "m-1",
            "content": [], "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 5,
                "output_tokens": 1}}}),
        block(
            0,
            json!({"type": "thinking", "thinking": "", "signature": ""}),
        ),
        delta(0, json!({"type": "thinking_delta", "thinking": "I add."})),
        delta(0, json!({"type": "signature_delta", "signature": "SIG"})),
        stop(0),
        block(1, json!({"type": "redacted_thinking", "data": "ENC"})),
        stop(1),
        block(
            2,
            json!({"type": "tool_use", "id": "c1", "name": "add", "input": {}}),
        ),
        delta(
            2,
            json!({"type": "input_json_delta", "partial_json": "{\"a\":1}"}),
        ),
        stop(2),
        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}}),
        json!({"type": "message_stop"}),
    ]);
    let user = json!({"role": "user", "content": [{"type": "text", "text": "1+1?", "cacheControl": true}]});
    let mut request = json!({"model": "up/m", "messages": [user], "systemPrompt": "Be brief.",
        "cacheControl": {"systemPrompt": true}, "reasoning": {"budgetTokens": 2048}, "maxTokens": 4096,
        "tools": [{"name": "add", "parameters": {"type": "object"}}]});
    let (server, sent, events) = exchange(&home, server, MessageType::CHAT, &request, answer).await;
    assert_eq!(
        sent["system"][0]["cache_control"]["type"], "ephemeral",
        "{sent:#}"
    );
    assert_eq!(
        sent["messages"][0]["content"][0]["cache_control"]["type"],
        "ephemeral"
    );
    assert_eq!(
        sent["thinking"],
        json!({"type": "enabled", "budget_tokens": 2048})
    );
    let of =
        |ty: &str| -> Vec<&Value> { events.iter().filter(|event| event["type"] == ty).collect() };
    assert_eq!(
        of("redactedReasoning"),
        [&json!({"type": "redactedReasoning", "data": "up/ENC"})]
    );
    assert_eq!(
        of("usage"),
        [
            &json!({"type": "usage", "inputTokens": 12, "outputTokens": 9, "cachedInputTokens": 4, "cacheWriteTokens": 5})
        ]
    );
    let text: String = of("reasoning")
        .iter()
        .filter_map(|event| event["text"].as_str())
        .collect();
    let signature = of("reasoning").last().unwrap()["signature"].clone();
    assert_eq!((text.as_str(), &signature), ("I add.", &json!("up/SIG")));

    // Back as a client keeps them.
    request["messages"].as_array_mut().unwrap().extend([
        json!({"role": "assistant", "content": [{"type": "reasoning", "text": text, "signature": signature},
            {"type": "redactedReasoning", "data": "up/ENC"}], "toolCalls": [{"id": "c1", "name": "add", "parameters": {"a": 1}}]}),
        json!({"role": "tool", "content": "2", "toolCallId": "c1"}),
    ]);
    let refused = Canned {
        status: 529,
        ..Canned::json(
            &json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        )
    };
    let upstream = thread::spawn(move || {
        let (_, body, mut stream) = server.request();
        refused.send(&mut stream);
        (server, serde_json::from_str::<Value>(&body).unwrap())
    });
    let client = Client::connect(Options::new(home.socket())).await.unwrap();
    let typed: ai::AIRequest = serde_json::from_value(request.clone()).unwrap();
    let error = client.complete(&typed).await.unwrap_err();
    assert_eq!(
        error.code(),
        Some(lapce_ai_client::ErrorCode::ProviderOverloaded),
        "{error}"
    );
    let (server, sent) = upstream.join().unwrap();
    assert_eq!(
        sent["messages"][1]["content"],
        json!([{"type": "thinking", "thinking": "I add.", "signature": "SIG"},
            {"type": "redacted_thinking", "data": "ENC"},
            {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}}])
    );

    // Here the provider counts, and its number is the answer.
    let upstream = thread::spawn(move || {
        let (head, body, mut stream) = server.request();
        Canned::json(&json!({"input_tokens": 17})).send(&mut stream);
        (head, serde_json::from_str::<Value>(&body).unwrap())
    });
    let count = client.token_count(&typed).await.unwrap();
    assert_eq!((count.tokens, count.exact), (17, true));
    let (head, counted) = upstream.join().unwrap();
    assert!(head.contains("/messages/count_tokens"), "{head}");
    assert_eq!(counted["messages"], sent["messages"]);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_error_has_all_of_the_provider_s_words() {
    let server = OpenAi::new();
    let home = home(&server, "compatible");
    let _daemon = home.serve(&[]);
    let url = thread::spawn(move || {
        let (_, _, mut stream) = server.request();
        let body = json!({"error": {"message": "Slow down.", "type": "requests", "code": "rate_limit_exceeded"}});
        let answer = Canned {
            status: 429,
            headers: "retry-after: 7\r\nx-request-id: req_9\r\n".to_owned(),
            ..Canned::json(&body)
        };
        answer.send(&mut stream);
    });
    let client = Client::connect(Options::new(home.socket())).await.unwrap();
    let request = ai::AIRequest::new("up/m", vec![ai::Message::user("x")]);
    let error = client.complete(&request).await.unwrap_err();
    url.join().unwrap();
    let lapce_ai_client::ClientError::Daemon(body) = error else {
        panic!("{error}")
    };
    assert_eq!(body.code, lapce_ai_client::ErrorCode::RateLimited);
    assert_eq!((body.status, body.retry_after_ms), (Some(429), Some(7000)));
    assert_eq!(body.provider.as_deref(), Some("up"));
    assert_eq!(body.provider_code.as_deref(), Some("rate_limit_exceeded"));
    assert_eq!(body.request_id.as_deref(), Some("req_9"));
    assert!(body.message.contains("Slow down."), "{}", body.message);
    client.close().await;
}

#[test]
fn the_command_line_can_show_pictures_think_and_ask_for_a_form() {
    let server = OpenAi::new();
    let home = home(&server, "compatible");
    let picture = home.path("dot.png");
    std::fs::write(&picture, b"\x89PNG\r\n\x1a\n").unwrap();
    std::fs::write(
        home.path("form.json"),
        r#"{"type": "object", "z": 1, "a": 2}"#,
    )
    .unwrap();
    let args = [
        "chat",
        "--model",
        "up/m",
        "--image",
        "dot.png",
        "--image",
        "https://x/y.jpg",
        "--reasoning",
        "high",
        "--schema",
        "form.json",
        "--system",
        "Be brief.",
        "What is it?",
    ];
    let chat = home.command(&args).spawn().unwrap();
    let (_, body, mut stream) = server.request();
    done().send(&mut stream);
    assert_eq!(support::ended(chat).out, "ok\n");
    let sent: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        sent["messages"],
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
            {"type": "image_url", "image_url": {"url": "https://x/y.jpg"}},
            {"type": "text", "text": "What is it?"}]}])
    );
    assert_eq!(sent["reasoning_effort"], "high");
    assert_eq!(
        sent["response_format"]["json_schema"].to_string(),
        r#"{"name":"answer","schema":{"type":"object","z":1,"a":2},"strict":true}"#
    );
    for (args, part) in [
        (&["chat", "--image", "no.png", "x"][..], "--image no.png: "),
        (
            &["chat", "--image", "form.json", "x"],
            "it is no PNG, JPEG, GIF or WebP picture",
        ),
        (&["chat", "--schema", "dot.png", "x"], "--schema dot.png: "),
        (
            &["chat", "--reasoning", "much", "x"],
            "or a number of tokens",
        ),
    ] {
        let ended = home.run(args);
        assert_eq!(ended.code, Some(2), "{args:?}");
        assert!(ended.err.contains(part), "{}", ended.err);
    }
}

#[test]
fn tokens_are_counted_about_where_the_provider_does_not_count() {
    let home = Home::new("");
    assert_eq!(home.ok(&["count", "12345678"]), "about 6\n");
    assert_eq!(
        home.ok(&["count", "--json", "--system", "1234", "12345678"]),
        "{\"tokens\":11,\"exact\":false}\n"
    );
    let unknown = home.run(&["count", "--model", "nobody", "x"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.err.contains("`nobody`"), "{}", unknown.err);
    let vectors = home.run(&["embed", "a", "b"]);
    assert_eq!(vectors.code, Some(1));
    assert!(
        vectors
            .err
            .contains("it cannot do what the request needs: embeddings"),
        "{}",
        vectors.err
    );
    let empty = home.run(&["embed", "a", ""]);
    assert!(empty.err.contains("input[1] is empty"), "{}", empty.err);
}

#[test]
fn vectors_are_asked_for_again_where_a_provider_is_overloaded() {
    let server = OpenAi::new();
    let home = Home::new(&format!(
        "[retries]\nattempts = 2\nbase_secs = 0\n[providers.up]\ntype = 'gemini'\nbase_url = '{}'\napi_key = 'key-test-12345'\n",
        server.url()
    ));
    let _daemon = home.serve(&[]);
    let command = [
        "embed",
        "--json",
        "--query",
        "-m",
        "up/gemini-embedding-001",
        "a",
        "b",
    ];
    let embed = home.command(&command).spawn().unwrap();
    let overloaded = Canned {
        status: 503,
        ..Canned::json(&json!({"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}))
    };
    let vectors =
        Canned::json(&json!({"embeddings": [{"values": [0.5, -0.25]}, {"values": [1, 0]}]}));
    for answer in [overloaded, vectors] {
        let (head, body, mut stream) = server.request();
        assert!(
            head.contains("gemini-embedding-001:batchEmbedContents"),
            "{head}"
        );
        assert!(body.contains("RETRIEVAL_QUERY"), "{body}");
        answer.send(&mut stream);
    }
    let ended = support::ended(embed);
    let answer: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(answer["embeddings"], json!([[0.5, -0.25], [1.0, 0.0]]));
    assert_eq!(
        (&answer["provider"], &answer["model"]),
        (&json!("up"), &json!("gemini-embedding-001"))
    );
    let live: Value = serde_json::from_str(&home.ok(&["providers", "--live", "--json"])).unwrap();
    let health = &live["providers"][0]["health"];
    assert_eq!(
        (&health["asked"], &health["failed"], &health["answered"]),
        (&json!(2), &json!(1), &json!(1))
    );
}
