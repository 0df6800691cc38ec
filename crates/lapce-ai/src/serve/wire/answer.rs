//! What is answered: from the providers' events to items and whole answers.

use lapce_ai_proto::Attempt;
use lapce_ai_proto::ai::{self, AIResponse, Part};
use lapce_ai_providers as domain;
use lapce_ai_providers::{ChatResponse, Content, Event};
use serde::Serialize;
use serde_json::Value;

/// [`ai::StreamEvent`] with borrowed texts.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum Item<'a> {
    Start {
        provider: &'a str,
        model: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
    },
    Text {
        text: &'a str,
    },
    Reasoning {
        text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        signature: Option<&'a str>,
    },
    ToolCall {
        index: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<&'a str>,
        #[serde(skip_serializing_if = "str::is_empty")]
        arguments: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        signature: Option<&'a str>,
    },
    RedactedReasoning {
        data: &'a str,
    },
    Citation {
        #[serde(skip_serializing_if = "Option::is_none")]
        url: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        title: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        quote: Option<&'a str>,
    },
    #[serde(rename_all = "camelCase")]
    Continued {
        provider: &'a str,
        model: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        text_bytes: u64,
    },
    Usage(ai::Usage),
    #[serde(rename_all = "camelCase")]
    Finish {
        reason: ai::FinishReason,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        attempts: &'a [Attempt],
        #[serde(skip_serializing_if = "Option::is_none")]
        cost_nano_usd: Option<u64>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        cached: bool,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        warnings: &'a [String],
    },
}

/// Replaces what is in `item` by the event's JSON. Allocates nothing once `item` is large enough.
pub(in crate::serve) fn write_item(
    item: &mut Vec<u8>,
    event: Event<'_>,
    provider: &str,
    asked: &str,
) {
    let json = match event {
        Event::Start { id, model } => Item::Start {
            provider,
            model: model.unwrap_or(asked),
            id,
        },
        Event::Text(text) => Item::Text { text },
        Event::Reasoning { text, signature } => Item::Reasoning { text, signature },
        Event::ToolCall(domain::ToolCallDelta {
            index,
            id,
            name,
            arguments,
            signature,
        }) => Item::ToolCall {
            index,
            id,
            name,
            arguments,
            signature,
        },
        Event::Citation(domain::Citation { url, title, quote }) => {
            Item::Citation { url, title, quote }
        }
        Event::RedactedReasoning(data) => Item::RedactedReasoning { data },
        Event::Continued {
            provider,
            model,
            id,
            text_bytes,
        } => Item::Continued {
            provider,
            model,
            id,
            text_bytes,
        },
        Event::Usage(tokens) => Item::Usage(usage(tokens)),
        Event::Finish(reason) => Item::Finish {
            reason: finish_reason(reason),
            attempts: &[],
            cost_nano_usd: None,
            cached: false,
            warnings: &[],
        },
    };
    write(item, &json);
}

/// Writes the last event of a stream: who was asked for it, and what it cost.
pub(in crate::serve) fn write_finish(
    item: &mut Vec<u8>,
    reason: domain::FinishReason,
    attempts: &[Attempt],
    bill: &domain::Bill,
) {
    let finish = Item::Finish {
        reason: finish_reason(reason),
        attempts,
        cost_nano_usd: bill.cost.map(domain::NanoUsd::get),
        cached: bill.cached,
        warnings: &bill.warnings,
    };
    write(item, &finish);
}

fn write(item: &mut Vec<u8>, json: &Item<'_>) {
    item.clear();
    // Texts and numbers always serialize, and a vector takes all bytes.
    let _ = serde_json::to_writer(item, json);
}

/// The whole answer.
pub(in crate::serve) fn response(answer: ChatResponse, provider: &str, asked: &str) -> AIResponse {
    let call = |call: domain::ToolCall| ai::ToolCall {
        id: call.id,
        name: call.name,
        parameters: match call.arguments.trim() {
            "" => Value::Object(serde_json::Map::new()),
            // A bad model's arguments are no JSON: then they are a string, as it wrote them.
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        },
        signature: call.signature,
    };
    let reasoning = answer.reasoning();
    let calls: Vec<_> = answer.tool_calls.into_iter().map(call).collect();
    let citation = |source: domain::Source| ai::Citation {
        url: source.url,
        title: source.title,
        quote: source.quote,
    };
    let citations: Vec<_> = answer.citations.into_iter().map(citation).collect();
    let thoughts: Vec<_> = answer.thoughts.into_iter().filter_map(thought).collect();
    AIResponse {
        id: answer.id,
        model: answer.model.unwrap_or_else(|| asked.to_owned()),
        provider: provider.to_owned(),
        content: answer.text,
        reasoning: Some(reasoning).filter(|text| !text.is_empty()),
        thoughts: Some(thoughts).filter(|thoughts| !thoughts.is_empty()),
        tool_calls: Some(calls).filter(|calls| !calls.is_empty()),
        citations: Some(citations).filter(|citations| !citations.is_empty()),
        usage: answer.usage.map(usage),
        finish_reason: answer.finish.map_or(ai::FinishReason::Other, finish_reason),
        attempts: Vec::new(),
        cost_nano_usd: None,
        cached: false,
        warnings: Vec::new(),
    }
}

fn thought(thought: Content) -> Option<Part> {
    match thought {
        Content::Reasoning { text, signature } => Some(Part::Reasoning { text, signature }),
        Content::RedactedReasoning(data) => Some(Part::RedactedReasoning { data }),
        // An answer's thoughts are nothing else.
        Content::Text(_) | Content::Image(_) | Content::CachePoint => None,
    }
}

pub(in crate::serve) fn usage(usage: domain::Usage) -> ai::Usage {
    ai::Usage {
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cached_input_tokens: Some(usage.cached_input_tokens).filter(|tokens| *tokens > 0),
        cache_write_tokens: Some(usage.cache_write_tokens).filter(|tokens| *tokens > 0),
        reasoning_tokens: Some(usage.reasoning_tokens).filter(|tokens| *tokens > 0),
    }
}

fn finish_reason(reason: domain::FinishReason) -> ai::FinishReason {
    match reason {
        domain::FinishReason::Stop => ai::FinishReason::Stop,
        domain::FinishReason::Length => ai::FinishReason::Length,
        domain::FinishReason::ToolCalls => ai::FinishReason::ToolCalls,
        domain::FinishReason::ContentFilter => ai::FinishReason::ContentFilter,
        domain::FinishReason::Refusal => ai::FinishReason::Refusal,
        domain::FinishReason::Unknown => ai::FinishReason::Other,
    }
}

#[cfg(test)]
mod tests {
    use lapce_ai_proto::ai::StreamEvent;
    use serde_json::json;

    use super::*;

    #[test]
    fn items_read_as_events() {
        let tokens = domain::Usage {
            input_tokens: 1,
            output_tokens: 2,
            cache_write_tokens: 3,
            reasoning_tokens: 1,
            ..domain::Usage::default()
        };
        let delta = domain::ToolCallDelta {
            index: 1,
            id: Some("c"),
            name: None,
            arguments: "{\"",
            signature: Some("proof"),
        };
        let text = "\"quoted\" \u{1} \u{1F600}\n";
        let cases = [
            (
                Event::Start {
                    id: None,
                    model: None,
                },
                StreamEvent::Start {
                    provider: "p".into(),
                    model: "asked".into(),
                    id: None,
                },
            ),
            (Event::Text(text), StreamEvent::Text { text: text.into() }),
            (
                Event::Reasoning {
                    text: "",
                    signature: Some("s"),
                },
                StreamEvent::Reasoning {
                    text: String::new(),
                    signature: Some("s".into()),
                },
            ),
            (
                Event::ToolCall(delta),
                StreamEvent::ToolCall {
                    index: 1,
                    id: Some("c".into()),
                    name: None,
                    arguments: Some("{\"".into()),
                    signature: Some("proof".into()),
                },
            ),
            (
                Event::RedactedReasoning("enc"),
                StreamEvent::RedactedReasoning { data: "enc".into() },
            ),
            (
                Event::Citation(domain::Citation {
                    title: Some("t"),
                    quote: Some("q"),
                    ..domain::Citation::default()
                }),
                StreamEvent::Citation(ai::Citation {
                    url: None,
                    title: Some("t".into()),
                    quote: Some("q".into()),
                }),
            ),
            (
                Event::Continued {
                    provider: "q",
                    model: "m",
                    id: None,
                    text_bytes: 9,
                },
                StreamEvent::Continued {
                    provider: "q".into(),
                    model: "m".into(),
                    id: None,
                    text_bytes: 9,
                },
            ),
            (
                Event::Usage(tokens),
                StreamEvent::Usage(ai::Usage {
                    input_tokens: 1,
                    output_tokens: 2,
                    cached_input_tokens: None,
                    cache_write_tokens: Some(3),
                    reasoning_tokens: Some(1),
                }),
            ),
            (
                Event::Finish(domain::FinishReason::Refusal),
                StreamEvent::Finish {
                    reason: ai::FinishReason::Refusal,
                    attempts: Vec::new(),
                    cost_nano_usd: None,
                    cached: false,
                    warnings: Vec::new(),
                },
            ),
        ];
        let mut item = Vec::new();
        for (event, expected) in cases {
            write_item(&mut item, event, "p", "asked");
            assert!(
                item.starts_with(b"{\"type\":\""),
                "{}",
                String::from_utf8_lossy(&item)
            );
            assert_eq!(item, serde_json::to_vec(&expected).unwrap());
            assert_eq!(
                serde_json::from_slice::<StreamEvent>(&item).unwrap(),
                expected
            );
        }
    }

    #[test]
    fn a_token_costs_no_allocation() {
        let mut item = Vec::with_capacity(64);
        let counted = allocation_counter::measure(|| {
            for _ in 0..100 {
                write_item(&mut item, Event::Text("a \"token\"\n"), "p", "m");
            }
        });
        assert_eq!(counted.count_total, 0);
        assert_eq!(item, br#"{"type":"text","text":"a \"token\"\n"}"#);
    }

    #[test]
    fn an_answer_in_one_piece_has_everything() {
        let call = |arguments: &str| domain::ToolCall {
            arguments: arguments.into(),
            signature: Some("proof".into()),
            ..Default::default()
        };
        let answer = ChatResponse {
            text: "hi".into(),
            thoughts: vec![
                Content::Reasoning {
                    text: "hm".into(),
                    signature: Some("sig".into()),
                },
                Content::RedactedReasoning("enc".into()),
            ],
            tool_calls: vec![call(""), call("{\"a\":1}"), call("{bad")],
            citations: vec![domain::Source {
                quote: Some("q".into()),
                ..domain::Source::default()
            }],
            finish: Some(domain::FinishReason::Length),
            ..ChatResponse::default()
        };
        let response = response(answer, "p", "asked");
        assert_eq!(
            (response.model.as_str(), response.provider.as_str()),
            ("asked", "p")
        );
        assert_eq!(response.finish_reason, ai::FinishReason::Length);
        let calls = response.tool_calls.unwrap();
        let parameters: Vec<_> = calls.iter().map(|call| call.parameters.clone()).collect();
        assert_eq!(parameters, [json!({}), json!({"a": 1}), json!("{bad")]);
        assert_eq!(calls[0].signature.as_deref(), Some("proof"));
        assert_eq!(response.reasoning.as_deref(), Some("hm"));
        assert_eq!(
            serde_json::to_value(response.thoughts.unwrap()).unwrap(),
            json!([{"type": "reasoning", "text": "hm", "signature": "sig"},
                {"type": "redactedReasoning", "data": "enc"}])
        );
        assert_eq!(response.citations.unwrap()[0].quote.as_deref(), Some("q"));
        assert_eq!(response.usage, None);
    }
}
