//! What the chat completions decoder makes of streams and bodies.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use proptest::prelude::*;
use support::{FINISH, USAGE, decoding, drain, sse, stream, text_chunk};

fn events(documents: &[&str]) -> Vec<String> {
    stream([sse(documents).as_bytes()])
}

fn body(json: &str) -> Vec<String> {
    let (mut decoding, mut events) = (decoding("application/json", 1 << 20), Vec::new());
    decoding.push(json.as_bytes());
    decoding.finish();
    drain(&mut decoding, &mut events);
    events
}

const START: &str = r#"Start { id: Some("c1"), model: Some("gpt-x") }"#;
const USED: &str = "Usage(Usage { input_tokens: 5, output_tokens: 2, cached_input_tokens: 3, cache_write_tokens: 0, reasoning_tokens: 1 })";

#[test]
fn an_answer_from_start_to_finish() {
    let usage = USAGE.replace('\n', "");
    let documents = [
        &*text_chunk(""),
        &text_chunk("Hel\n"),
        &text_chunk("lö \"🙂\""),
        FINISH,
        &usage,
    ];
    let expected = [
        START,
        r#"Text("Hel\n")"#,
        r#"Text("lö \"🙂\"")"#,
        USED,
        "Finish(Stop)",
    ];
    assert_eq!(events(&documents), expected);
}

#[test]
fn an_answer_in_one_piece() {
    let json = r#"{"id":"c1","object":"chat.completion","model":"gpt-x","choices":[{"index":0,"message":{
        "role":"assistant","content":"Hi\n","refusal":null,"tool_calls":[{"id":"a","type":"function","function":
        {"name":"look","arguments":"{}"}}],"annotations":[{"type":"url_citation","url_citation":{"url":"http://x",
        "title":"X"}},{"type":"other"}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":5,
        "completion_tokens":2,"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":
        {"reasoning_tokens":1}},"unknown":{"a":[1]}}"#;
    let call = r#"ToolCall(ToolCallDelta { index: 0, id: Some("a"), name: Some("look"), arguments: "{}", signature: None })"#;
    let citation = r#"Citation(Citation { url: Some("http://x"), title: Some("X"), quote: None })"#;
    assert_eq!(
        body(json),
        [
            START,
            r#"Text("Hi\n")"#,
            call,
            citation,
            USED,
            "Finish(ToolCalls)"
        ]
    );
    assert!(body(r#"{"id":"c1","choi"#)[0].starts_with("StreamCut"));
    assert!(body("<html>")[0].starts_with("MalformedResponse"));
    assert!(body("{}")[0].starts_with("MalformedResponse"));
    // OpenRouter reports errors of the provider behind it with status 200.
    let error = r#"{"error":{"message":"busy","code":429}}"#;
    assert_eq!(body(error), ["RateLimited: busy"]);
}

#[test]
fn a_body_that_is_too_long_is_refused() {
    let (mut decoding, mut events) = (decoding("application/json", 10), Vec::new());
    decoding.push(b"0123456789");
    drain(&mut decoding, &mut events);
    assert!(events.is_empty());
    decoding.push(b"x");
    drain(&mut decoding, &mut events);
    assert!(events[0].starts_with("MalformedResponse"));
}

#[test]
fn an_event_that_is_too_long_is_refused_after_what_came_before() {
    let (mut decoding, mut events) = (decoding("text/event-stream", 400), Vec::new());
    decoding.push(
        format!(
            "data: {}\n\ndata: {}\n\n",
            text_chunk("a"),
            text_chunk(&"b".repeat(500))
        )
        .as_bytes(),
    );
    drain(&mut decoding, &mut events);
    assert_eq!(events[1], r#"Text("a")"#);
    assert!(events[2].starts_with("MalformedResponse"), "{events:?}");
}

#[test]
fn several_tool_calls_in_pieces() {
    let delta = |calls: &str| {
        format!(r#"{{"id":"c1","model":"gpt-x","choices":[{{"delta":{{"tool_calls":{calls}}}}}]}}"#)
    };
    let documents = [
        delta(
            r#"[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}},
               {"index":1,"id":"b","type":"function","function":{"name":"g","arguments":"{\"x\""}}]"#,
        ),
        delta(r#"[{"index":1,"function":{"arguments":":1}"}},{"index":0,"function":{"arguments":"{}"}}]"#),
        delta(r#"[{"index":0,"id":"","function":{"name":"","arguments":""}}]"#),
    ]
    .map(|document| document.replace('\n', ""));
    let done = r#"{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#;
    let call = |index: u32, id: &str, name: &str, arguments: &str| {
        format!(
            "ToolCall(ToolCallDelta {{ index: {index}, id: {id}, name: {name}, arguments: {arguments:?}, signature: None }})"
        )
    };
    let expected = [
        START.into(),
        call(0, r#"Some("a")"#, r#"Some("f")"#, ""),
        call(1, r#"Some("b")"#, r#"Some("g")"#, "{\"x\""),
        call(1, "None", "None", ":1}"),
        call(0, "None", "None", "{}"),
        "Finish(ToolCalls)".into(),
    ];
    assert_eq!(
        events(&[&documents[0], &documents[1], &documents[2], done]),
        expected
    );
}

#[test]
fn tool_calls_of_servers_that_count_in_their_own_way() {
    let called = |calls: &str| {
        let document = format!(
            r#"{{"id":"c1","choices":[{{"delta":{{"tool_calls":{calls}}},"finish_reason":"tool_calls"}}]}}"#
        );
        let calls = events(&[&document])
            .into_iter()
            .filter(|event| event.starts_with("ToolCall"));
        calls
            .map(|call| call.replace("ToolCall(ToolCallDelta ", ""))
            .collect::<Vec<_>>()
    };
    let two = [
        r#"{ index: 0, id: Some("a"), name: Some("f"), arguments: "{}", signature: None })"#,
        r#"{ index: 1, id: Some("b"), name: Some("g"), arguments: "{}", signature: None })"#,
    ];
    let (a, b) = (
        r#"{"id":"a","function":{"name":"f","arguments":"{}"}"#,
        r#"{"id":"b","function":{"name":"g","arguments":"{}"}"#,
    );
    // No index (Mistral), all the same index (Gemini), counting from 1.
    for (first, second) in [
        ("", ""),
        (r#","index":0"#, r#","index":0"#),
        (r#","index":1"#, r#","index":2"#),
    ] {
        assert_eq!(called(&format!("[{a}{first}}},{b}{second}}}]")), two);
    }
    // Arguments as JSON, no id, null.
    let odd = called(r#"[{"index":0,"id":null,"function":{"name":"f","arguments":{"x":1}}}]"#);
    assert_eq!(
        odd,
        [
            r#"{ index: 0, id: Some("call_0"), name: Some("f"), arguments: "{\"x\":1}", signature: None })"#
        ]
    );
    // A hostile number of calls.
    let many: Vec<_> = (0..1025)
        .map(|i| format!(r#"{{"index":{i},"id":"{i}","function":{{"name":"f"}}}}"#))
        .collect();
    let document = format!(
        r#"{{"id":"c1","choices":[{{"delta":{{"tool_calls":[{}]}}}}]}}"#,
        many.join(",")
    );
    assert!(
        events(&[&document])
            .last()
            .unwrap()
            .starts_with("MalformedResponse")
    );
}

#[test]
fn reasoning_in_every_spelling() {
    for delta in [
        r#""reasoning_content":"hm""#,
        r#""reasoning":"hm","content":"""#,
        r#""reasoning_content":null,"reasoning":"hm","content":null"#,
        r#""content":[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]}]"#,
    ] {
        let document =
            format!(r#"{{"id":"c1","model":"gpt-x","choices":[{{"delta":{{{delta}}}}}]}}"#);
        let reasoning = r#"Reasoning { text: "hm", signature: None }"#;
        assert_eq!(
            events(&[&document, FINISH]),
            [START, reasoning, "Finish(Stop)"],
            "{delta}"
        );
    }
    let parts = r#"{"id":"c1","model":"gpt-x","choices":[{"delta":{"content":[{"type":"text","text":"a\n"},{"type":"x"}]}}]}"#;
    assert_eq!(
        events(&[parts, FINISH]),
        [START, r#"Text("a\n")"#, "Finish(Stop)"]
    );
}

#[test]
fn a_refusal_is_text_with_its_own_end() {
    let refusal =
        r#"{"id":"c1","model":"gpt-x","choices":[{"delta":{"content":null,"refusal":"No."}}]}"#;
    assert_eq!(
        events(&[refusal, FINISH]),
        [START, r#"Text("No.")"#, "Finish(Refusal)"]
    );
}

#[test]
fn reasons_to_finish() {
    for (name, reason) in [
        ("stop", "Stop"),
        ("length", "Length"),
        ("tool_calls", "ToolCalls"),
        ("function_call", "ToolCalls"),
        ("content_filter", "ContentFilter"),
        ("something_new", "Unknown"),
    ] {
        let document = format!(
            r#"{{"id":"c1","choices":[{{"delta":{{"content":"a"}},"finish_reason":"{name}"}}]}}"#
        );
        assert_eq!(
            events(&[&document]).last().unwrap(),
            &format!("Finish({reason})")
        );
    }
    for (name, kind) in [
        ("error", "ProviderInternal"),
        ("insufficient_system_resource", "Overloaded"),
    ] {
        let document =
            format!(r#"{{"id":"c1","choices":[{{"delta":{{}},"finish_reason":"{name}"}}]}}"#);
        assert!(events(&[&document]).last().unwrap().starts_with(kind));
    }
    // `[DONE]` without a reason is a proper end of an answer, but not of nothing.
    assert_eq!(
        events(&[&text_chunk("a")]).last().unwrap(),
        "Finish(Unknown)"
    );
    assert!(events(&[])[0].starts_with("MalformedResponse"));
}

#[test]
fn done_or_a_reason_completes_an_answer_and_nothing_else_does() {
    let cut = format!("data: {}\n\n", text_chunk("a"));
    let events = stream([cut.as_bytes()]);
    assert_eq!(events[..2], [START, r#"Text("a")"#]);
    assert!(events[2].starts_with("StreamCut"));
    assert!(stream([&b""[..]])[0].starts_with("StreamCut"));
    // A finish reason and usage, but no `[DONE]`; the last event lacks its empty line and is not one.
    let usage = USAGE.replace('\n', "");
    let no_done = format!("{cut}data: {FINISH}\n\ndata: {usage}\n\ndata: [DONE]\n");
    assert_eq!(stream([no_done.as_bytes()])[2..], [USED, "Finish(Stop)"]);
    // What comes after `[DONE]` is not looked at.
    let more = format!("{cut}data: {FINISH}\n\ndata: [DONE]\n\ndata: garbage\n\n");
    assert_eq!(stream([more.as_bytes()]).last().unwrap(), "Finish(Stop)");
}

#[test]
fn errors_in_the_middle_of_a_stream() {
    for (document, expected) in [
        (
            r#"{"error":{"message":"The server had an error","type":"server_error","param":null,"code":null}}"#,
            "ProviderInternal: The server had an error",
        ),
        (
            r#"{"error":{"message":"m","type":"insufficient_quota","code":"insufficient_quota"}}"#,
            "QuotaExhausted: m",
        ),
        (
            r#"{"error":{"message":"m","code":"context_length_exceeded"}}"#,
            "ContextLengthExceeded: m",
        ),
        // OpenRouter.
        (
            r#"{"id":"c1","error":{"code":502,"message":"m"},"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}"#,
            "ProviderInternal: m",
        ),
        // vLLM.
        (
            r#"{"object":"error","message":"m","type":"BadRequestError","code":400}"#,
            "InvalidRequest: m",
        ),
        (
            r#"{"error":"model runner has stopped"}"#,
            "ProviderInternal: model runner has stopped",
        ),
    ] {
        let events = events(&[&text_chunk("a"), document]);
        assert_eq!(events[1..], [r#"Text("a")"#, expected]);
    }
    let named = format!(
        "data: {}\n\nevent: error\ndata: out of memory\n\n",
        text_chunk("a")
    );
    assert_eq!(
        stream([named.as_bytes()]).last().unwrap(),
        "ProviderInternal: out of memory"
    );
    // An `error` that is null is none.
    assert_eq!(
        events(&[r#"{"id":"c1","error":null,"choices":[{"delta":{"content":"a"}}]}"#]).len(),
        3
    );
}

#[test]
fn what_is_not_a_chunk_is_malformed() {
    for wrong in [
        "hello",
        "[]",
        "3",
        r#"{"choices":{}}"#,
        r#"{"choices":[{"delta":"x"}]}"#,
        "{\"id\":",
        "\u{0}",
    ] {
        let events = events(&[&text_chunk("a"), wrong]);
        assert!(
            events.last().unwrap().starts_with("MalformedResponse"),
            "{wrong}: {events:?}"
        );
    }
}

#[test]
fn empty_and_null_say_nothing() {
    for nothing in [
        r#"{"id":"","model":"","choices":[],"prompt_filter_results":[{}]}"#,
        r#"{"id":null,"model":null,"choices":null,"usage":null,"object":null}"#,
        "{}",
        "",
    ] {
        let events = events(&[nothing, &text_chunk("a"), FINISH]);
        assert_eq!(events, [START, r#"Text("a")"#, "Finish(Stop)"], "{nothing}");
    }
    let nulls = r#"{"id":"c1","choices":[{"index":0,"delta":{"role":null,"content":null,"reasoning":null,"refusal":null,"tool_calls":null,"annotations":null},"finish_reason":null}]}"#;
    assert_eq!(events(&[&text_chunk("a"), nulls, FINISH]).len(), 3);
    // Usage in an unknown form is not worth an error.
    let odd = r#"{"choices":[],"usage":"free"}"#;
    assert_eq!(
        events(&[&text_chunk("a"), FINISH, odd]).last().unwrap(),
        "Finish(Stop)"
    );
}

#[test]
fn sources_are_told_once() {
    let with = |text: &str, list: &str| {
        format!(
            r#"{{"id":"c1","citations":{list},"choices":[{{"delta":{{"content":"{text}"}}}}]}}"#
        )
    };
    let one = r#"["http://a"]"#;
    let two = r#"["http://a","http://b"]"#;
    let events = events(&[&with("x", one), &with("y", one), &with("z", two), FINISH]);
    let cited: Vec<_> = events
        .iter()
        .filter(|event| event.starts_with("Citation"))
        .collect();
    assert_eq!(
        cited,
        [
            r#"Citation(Citation { url: Some("http://a"), title: None, quote: None })"#,
            r#"Citation(Citation { url: Some("http://b"), title: None, quote: None })"#
        ]
    );
}

#[test]
fn reasoning_beside_the_completion_is_counted_in() {
    let xai = r#"{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":2,"total_tokens":354,"completion_tokens_details":{"reasoning_tokens":340}}}"#;
    let events = events(&[&text_chunk("a"), FINISH, xai]);
    assert!(
        events[2].contains("output_tokens: 342") && events[2].contains("reasoning_tokens: 340"),
        "{events:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_chunking_gives_the_same_events(cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..30)) {
        let usage = USAGE.replace('\n', "");
        let text = sse(&[&text_chunk("Grüße\n"), &text_chunk("🙂"), FINISH, &usage]);
        let bytes = text.as_bytes();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let chunks = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
        prop_assert_eq!(stream(chunks), stream([bytes]));
    }

    #[test]
    fn no_bytes_make_it_panic(
        pieces in proptest::collection::vec(
            prop_oneof![
                Just("data: ".to_owned()), Just("\n\n".to_owned()), Just(text_chunk("a")), Just("{\"choices\":".to_owned()),
                Just("[{\"delta\":".to_owned()), Just("{\"content\":\"\\ud83d".to_owned()), Just("\"}}]}".to_owned()),
                Just("{\"tool_calls\":[{}]}".to_owned()), Just("[DONE]".to_owned()), "\\PC{0,8}",
            ],
            0..30,
        ),
    ) {
        let text = pieces.concat();
        let events = stream([text.as_bytes()]);
        // It ends in a finish or in an error, and in nothing after that.
        let ends = events.iter().filter(|event| event.starts_with("Finish") || event.contains(": ") && !event.contains("{ "));
        prop_assert!(ends.count() >= 1, "{events:?}");
    }
}
