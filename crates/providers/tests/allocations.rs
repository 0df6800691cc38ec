//! A text token costs no heap allocation, from the body's chunk in hand to the event out.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use allocation_counter::measure;
use lapce_ai_providers::Event;
use support::{aws, decoding, decoding_of, text_chunk};

/// Tokens with every kind of text: plain, escaped, beyond ASCII, and longer than those of the warm-up's start.
fn token(number: usize) -> String {
    [
        "word",
        " fn main() {\n",
        "\"quoted\"",
        " Grüße 🙂",
        "\\u00e9 \t",
    ][number % 5]
        .repeat(1 + number % 3)
}

#[test]
fn a_text_token_allocates_nothing() {
    let chunks: Vec<String> = (0..1000)
        .map(|number| format!("data: {}\n\n", text_chunk(&token(number))))
        .collect();
    let mut decoding = decoding("text/event-stream", 1 << 20);
    let mut tokens = 0;
    let mut feed = |bytes: &[u8]| {
        decoding.push(bytes);
        while let Some(event) = decoding.next() {
            if let Ok(Event::Text(text)) = event {
                tokens += usize::from(!text.is_empty());
            }
        }
    };
    for chunk in &chunks[..100] {
        feed(chunk.as_bytes());
    }
    let counted = measure(|| {
        for chunk in &chunks[100..] {
            feed(chunk.as_bytes());
        }
    });
    assert_eq!(tokens, 1000);
    assert_eq!(counted.count_total, 0, "{counted:?}");
}

#[test]
fn nor_does_one_that_comes_in_pieces_or_in_company() {
    let chunks: Vec<String> = (0..400)
        .map(|number| format!("data: {}\n\n", text_chunk(&token(number))))
        .collect();
    let text = chunks.concat();
    let mut decoding = decoding("text/event-stream", 1 << 20);
    let mut tokens = 0;
    let mut feed = |bytes: &[u8]| {
        decoding.push(bytes);
        while decoding.next().is_some() {
            tokens += 1;
        }
    };
    let (warm_up, rest) = text.as_bytes().split_at(text.len() / 2);
    warm_up.chunks(700).for_each(&mut feed);
    let counted = measure(|| {
        let (company, pieces) = rest.split_at(rest.len() / 2);
        company.chunks(700).for_each(&mut feed);
        pieces.chunks(7).for_each(&mut feed);
    });
    assert!(tokens > 390, "{tokens}");
    assert_eq!(counted.count_total, 0, "{counted:?}");
}

#[test]
fn nor_does_a_piece_of_reasoning_or_of_a_tool_calls_arguments() {
    for delta in [
        r#"{"reasoning_content":"hm\n"}"#,
        r#"{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]}"#,
    ] {
        // With Azure's nested verdicts, in every chunk.
        let filter = r#"{"hate":{"filtered":false,"severity":"safe"},"n":[1,-1,0.5,null]}"#;
        let choice = format!(r#"{{"delta":{delta},"content_filter_results":{filter}}}"#);
        let chunk = format!("data: {{\"id\":\"c\",\"choices\":[{choice}]}}\n\n");
        let mut decoding = decoding("text/event-stream", 1 << 20);
        let mut events = 0;
        let mut feed = |times: usize| {
            for _ in 0..times {
                decoding.push(chunk.as_bytes());
                while decoding.next().is_some() {
                    events += 1;
                }
            }
        };
        feed(10);
        let counted = measure(|| feed(100));
        assert!(events >= 110, "{delta}");
        assert_eq!(counted.count_total, 0, "{delta}: {counted:?}");
    }
}

/// Streams of other formats, of four hundred events made by `event` each: text, thoughts, arguments.
fn costs_nothing(profile: &str, media_type: &str, event: impl Fn(&str) -> String) {
    let stream: String = (0..400).map(|number| event(&token(number))).collect();
    let mut decoding = decoding_of(profile, media_type, 1 << 20);
    let mut events = 0;
    let mut feed = |bytes: &[u8]| {
        decoding.push(bytes);
        while let Some(event) = decoding.next() {
            events += usize::from(!matches!(event.unwrap(), Event::Start { .. }));
        }
    };
    let (warm_up, rest) = stream.as_bytes().split_at(stream.len() / 2);
    warm_up.chunks(700).for_each(&mut feed);
    let counted = measure(|| {
        let (company, pieces) = rest.split_at(rest.len() / 2);
        company.chunks(700).for_each(&mut feed);
        pieces.chunks(7).for_each(&mut feed);
    });
    assert!(events >= 399, "{profile}: {events}");
    assert_eq!(counted.count_total, 0, "{profile}: {counted:?}");
}

#[test]
fn nor_does_anything_of_coheres() {
    for delta in [
        r#"{"message":{"content":{"text":TOKEN}}}"#,
        r#"{"message":{"content":{"thinking":TOKEN}}}"#,
        r#"{"message":{"tool_plan":TOKEN}}"#,
        r#"{"message":{"tool_calls":{"function":{"arguments":TOKEN}}}}"#,
    ] {
        costs_nothing("cohere", "text/event-stream", |token| {
            let delta = delta.replace("TOKEN", &serde_json::to_string(token).unwrap());
            format!(
                "event: content-delta\ndata: {{\"type\":\"content-delta\",\"index\":0,\"delta\":{delta}}}\n\n"
            )
        });
    }
}

#[test]
fn nor_does_anything_of_ollamas() {
    for message in [
        r#"{"role":"assistant","content":TOKEN}"#,
        r#"{"role":"assistant","content":"","thinking":TOKEN}"#,
    ] {
        costs_nothing("ollama", "application/x-ndjson", |token| {
            let message = message.replace("TOKEN", &serde_json::to_string(token).unwrap());
            format!("{{\"model\":\"m\",\"message\":{message},\"done\":false}}\n")
        });
    }
}

#[test]
fn nor_does_a_piece_of_anthropics() {
    let start = r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}"#;
    for delta in [
        r#"{"type":"text_delta","text":TOKEN}"#,
        r#"{"type":"thinking_delta","thinking":TOKEN}"#,
        r#"{"type":"input_json_delta","partial_json":TOKEN}"#,
    ] {
        let piece = |number: usize| {
            let token = serde_json::to_string(&token(number)).unwrap();
            let delta = delta.replace("TOKEN", &token);
            format!(
                "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{delta}}}\n\n"
            )
        };
        // With pings among them, as they really come.
        let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
        let stream: String = (0..400).map(|number| piece(number) + ping).collect();
        let mut decoding = decoding_of("anthropic", "text/event-stream", 1 << 20);
        decoding.push(format!("event: content_block_start\ndata: {start}\n\n").as_bytes());
        let mut events = 0;
        let mut feed = |bytes: &[u8]| {
            decoding.push(bytes);
            while let Some(event) = decoding.next() {
                events += usize::from(event.is_ok());
            }
        };
        let mut both_ways = |stream: &[u8]| {
            let (company, pieces) = stream.split_at(stream.len() / 2);
            company.chunks(700).for_each(&mut feed);
            pieces.chunks(7).for_each(&mut feed);
        };
        let (warm_up, rest) = stream.as_bytes().split_at(stream.len() / 2);
        both_ways(warm_up);
        let counted = measure(|| both_ways(rest));
        // The beginnings of the answer and of the call are two.
        assert_eq!(events, 402, "{delta}");
        assert_eq!(counted.count_total, 0, "{delta}: {counted:?}");
    }
}

#[test]
fn nor_does_a_message_of_awss_event_stream() {
    for delta in [
        r#"{"text":"word\n"}"#,
        r#"{"reasoningContent":{"text":"hm\n"}}"#,
        r#"{"toolUse":{"input":"{\"a\""}}"#,
    ] {
        let start = r#"{"contentBlockIndex":1,"start":{"toolUse":{"toolUseId":"a","name":"b"}}}"#;
        let start = aws::event("contentBlockStart", start);
        let payload =
            format!(r#"{{"contentBlockIndex":1,"delta":{delta},"p":"abcdefghijklmnop"}}"#);
        let message = aws::event("contentBlockDelta", &payload);
        let mut decoding = decoding_of("bedrock", "application/vnd.amazon.eventstream", 1 << 20);
        decoding.push(&start);
        let mut events = 0;
        let mut feed = |times: usize, piece: usize| {
            for _ in 0..times {
                for piece in message.chunks(piece) {
                    decoding.push(piece);
                    while let Some(event) = decoding.next() {
                        assert!(event.is_ok());
                        events += 1;
                    }
                }
            }
        };
        feed(10, message.len());
        let counted = measure(|| {
            feed(100, message.len());
            feed(100, 7);
        });
        assert!(events >= 210, "{delta}");
        assert_eq!(counted.count_total, 0, "{delta}: {counted:?}");
    }
}

#[test]
fn nor_does_a_piece_of_geminis() {
    for part in [
        r#"{"text":TOKEN}"#,
        r#"{"text":TOKEN,"thought":true}"#,
        r#"{"functionCall":{"partialArgs":[{"jsonPath":"$.a[0].b","stringValue":TOKEN,"willContinue":true}],"willContinue":true}}"#,
    ] {
        // With what each chunk has besides.
        let piece = |part: &str| {
            format!(
                r#"data: {{"candidates":[{{"content":{{"parts":[{part}],"role":"model"}},"index":0,"safetyRatings":[{{"category":"C","probability":"LOW"}}]}}],"usageMetadata":{{"promptTokenCount":2,"promptTokensDetails":[{{"modality":"TEXT","tokenCount":2}}],"candidatesTokensDetails":[{{"modality":"TEXT","tokenCount":2}}]}},"modelVersion":"m","responseId":"r"}}"#
            ) + "\r\n\r\n"
        };
        let stream: String = (0..400)
            .map(|number| serde_json::to_string(&token(number)).unwrap())
            .map(|token| piece(&part.replace("TOKEN", &token)))
            .collect();
        let mut decoding = decoding_of("gemini", "text/event-stream", 1 << 20);
        let call = r#"{"functionCall":{"name":"f","willContinue":true}}"#;
        decoding.push(piece(call).as_bytes());
        let mut events = 0;
        let mut feed = |bytes: &[u8]| {
            decoding.push(bytes);
            while let Some(event) = decoding.next() {
                events += usize::from(event.is_ok());
            }
        };
        let (warm_up, rest) = stream.as_bytes().split_at(stream.len() / 2);
        warm_up.chunks(700).for_each(&mut feed);
        let counted = measure(|| {
            let (company, pieces) = rest.split_at(rest.len() / 2);
            company.chunks(700).for_each(&mut feed);
            pieces.chunks(7).for_each(&mut feed);
        });
        assert!(events >= 400, "{part}: {events}");
        assert_eq!(counted.count_total, 0, "{part}: {counted:?}");
    }
}

#[test]
fn nor_does_a_piece_of_the_responses_api() {
    let first = r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","call_id":"c","name":"f"}}"#;
    for kind in [
        "response.output_text.delta",
        "response.refusal.delta",
        "response.reasoning_summary_text.delta",
        "response.reasoning_text.delta",
        "response.function_call_arguments.delta",
    ] {
        let logprobs =
            r#"[{"token":"a","logprob":-0.5,"top_logprobs":[{"token":"b","bytes":[1]}]}]"#;
        let piece = |number: usize| {
            let text = serde_json::to_string(&token(number)).unwrap();
            format!(
                r#"data: {{"type":"{kind}","sequence_number":{number},"item_id":"i","output_index":0,"content_index":0,"delta":{text},"logprobs":{logprobs},"obfuscation":"x"}}"#
            )
        };
        let stream: String = (0..300).map(|number| piece(number) + "\n\n").collect();
        let mut decoding = decoding_of("openai-responses", "text/event-stream", 1 << 20);
        decoding.push(format!("data: {first}\n\n").as_bytes());
        let mut events = 0;
        let mut feed = |bytes: &[u8]| {
            decoding.push(bytes);
            while let Some(event) = decoding.next() {
                events += usize::from(event.is_ok());
            }
        };
        let (warm_up, rest) = stream.as_bytes().split_at(stream.len() / 2);
        warm_up.chunks(700).for_each(&mut feed);
        let counted = measure(|| {
            let (company, pieces) = rest.split_at(rest.len() / 2);
            company.chunks(700).for_each(&mut feed);
            pieces.chunks(7).for_each(&mut feed);
        });
        assert!(events >= 300, "{kind}: {events}");
        assert_eq!(counted.count_total, 0, "{kind}: {counted:?}");
    }
}
