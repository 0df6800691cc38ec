//! Wire types here, domain types there: the one place where they meet.

use std::time::Duration;

use lapce_ai_proto::ai::{
    self, AIRequest, AIResponse, AutocompleteRequest, Content, Effort, FileAnalysisRequest, Part,
    Role,
};
use lapce_ai_proto::{Attempt, ErrorBody, ErrorCode};
use lapce_ai_providers as domain;
use lapce_ai_providers::{
    CatalogError, ChatRequest, ChatResponse, ErrorKind, Event, Phase, ProviderError,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

/// Tokens of a completion at the cursor, unless the request says otherwise.
const COMPLETION_TOKENS: u32 = 256;
/// Bytes of text that make a token, roughly and in most languages.
const BYTES_PER_TOKEN: u64 = 4;
/// Tokens that a message costs besides its text.
const TOKENS_PER_MESSAGE: u64 = 4;
/// Tokens of a picture, roughly: providers count from 85 to 1,500.
const TOKENS_PER_IMAGE: u64 = 765;

const COMPLETE: &str = "You complete code at a cursor. You are given the text before and after it. Answer with the \
    text that belongs at the cursor and nothing else: no explanation, no code fence, nothing of what is already there.";
const ANALYZE: &str = "You answer questions about a file that is given to you.";

/// Reads a request's body.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ErrorBody> {
    serde_json::from_slice(body).map_err(|error| {
        // serde's own text ends with the same place, and may repeat a value of the request.
        invalid(format!(
            "the request's JSON is wrong at line {}, column {}: {error}",
            error.line(),
            error.column()
        ))
    })
}

fn invalid(message: impl Into<String>) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidRequest, message)
}

/// A chat request for `model`, by the name that the provider uses.
pub(super) fn chat_request(request: AIRequest, model: String) -> Result<ChatRequest, ErrorBody> {
    if request.messages.is_empty() {
        return Err(invalid("messages is empty: a request needs at least one"));
    }
    let stream = request.wants_stream();
    let messages = request.messages.into_iter().enumerate();
    let reasoning = request.reasoning.unwrap_or_default();
    Ok(ChatRequest {
        model,
        system: request.system_prompt,
        messages: messages
            .map(|(at, message)| self::message(at, message))
            .collect::<Result<_, _>>()?,
        tools: request
            .tools
            .unwrap_or_default()
            .into_iter()
            .map(tool)
            .collect::<Result<_, _>>()?,
        tool_choice: request.tool_choice.map(|choice| match choice {
            ai::ToolChoice::Auto => domain::ToolChoice::Auto,
            ai::ToolChoice::None => domain::ToolChoice::None,
            ai::ToolChoice::Required => domain::ToolChoice::Required,
            ai::ToolChoice::Named { name } => domain::ToolChoice::Tool(name),
        }),
        response_format: match request.response_format {
            None | Some(ai::ResponseFormat::Text) => None,
            Some(ai::ResponseFormat::JsonObject) => Some(domain::ResponseFormat::JsonObject),
            Some(ai::ResponseFormat::JsonSchema {
                name,
                schema,
                strict,
            }) => Some(domain::ResponseFormat::JsonSchema {
                name,
                schema: raw(&schema)?,
                strict,
            }),
        },
        temperature: request.temperature,
        top_p: request.top_p,
        max_tokens: request.max_tokens,
        stop: request.stop.unwrap_or_default(),
        seed: request.seed,
        reasoning: reasoning
            .effort
            .map(effort)
            .or(reasoning.budget_tokens.map(effort_for_budget)),
        metadata: request.metadata.unwrap_or_default(),
        stream,
        ..ChatRequest::default()
    })
}

fn message(at: usize, message: ai::Message) -> Result<domain::Message, ErrorBody> {
    let role = match message.role {
        Role::System => domain::Role::System,
        Role::User => domain::Role::User,
        Role::Assistant => domain::Role::Assistant,
        Role::Tool => domain::Role::Tool,
    };
    if role == domain::Role::Tool && message.tool_call_id.is_none() {
        return Err(invalid(format!(
            "messages[{at}] has role \"tool\" and no toolCallId"
        )));
    }
    let content = match message.content {
        Content::Text(text) if text.is_empty() => Vec::new(),
        Content::Text(text) => vec![domain::Content::Text(text)],
        Content::Parts(parts) => parts
            .into_iter()
            .map(|part| self::part(at, part))
            .collect::<Result<_, _>>()?,
    };
    let call = |call: ai::ToolCall| domain::ToolCall {
        id: call.id,
        name: call.name,
        arguments: match call.parameters {
            // What a model wrote and was no JSON, see `response`.
            Value::String(text) => text,
            parameters => parameters.to_string(),
        },
        signature: None,
    };
    Ok(domain::Message {
        role,
        content,
        tool_calls: message
            .tool_calls
            .unwrap_or_default()
            .into_iter()
            .map(call)
            .collect(),
        tool_call_id: message.tool_call_id,
    })
}

/// `cacheControl` is not passed on yet: no provider format here has it.
fn part(at: usize, part: Part) -> Result<domain::Content, ErrorBody> {
    let source = match part {
        Part::Text { text, .. } => return Ok(domain::Content::Text(text)),
        Part::Image {
            media_type: Some(media_type),
            data: Some(data),
            url: None,
        } => domain::ImageSource::Base64 { media_type, data },
        Part::Image {
            media_type: _,
            data: None,
            url: Some(url),
        } => domain::ImageSource::Url(url),
        Part::Image { .. } => {
            return Err(invalid(format!(
                "messages[{at}]: an image has either mediaType and data, or url"
            )));
        }
    };
    Ok(domain::Content::Image(domain::Image {
        source,
        detail: None,
    }))
}

fn tool(tool: ai::Tool) -> Result<domain::Tool, ErrorBody> {
    let parameters = Some(raw(&tool.parameters)?);
    Ok(domain::Tool {
        name: tool.name,
        description: tool.description,
        parameters,
        strict: None,
    })
}

fn raw(value: &Value) -> Result<Box<RawValue>, ErrorBody> {
    to_raw_value(value).map_err(|error| invalid(error.to_string()))
}

fn effort(effort: Effort) -> domain::ReasoningEffort {
    match effort {
        Effort::Minimal => domain::ReasoningEffort::Minimal,
        Effort::Low => domain::ReasoningEffort::Low,
        Effort::Medium => domain::ReasoningEffort::Medium,
        Effort::High => domain::ReasoningEffort::High,
    }
}

/// Providers that take a level and no budget get the level that others give for about so many tokens.
fn effort_for_budget(tokens: u32) -> domain::ReasoningEffort {
    match tokens {
        0 => domain::ReasoningEffort::None,
        1..=1_024 => domain::ReasoningEffort::Minimal,
        1_025..=4_096 => domain::ReasoningEffort::Low,
        4_097..=16_384 => domain::ReasoningEffort::Medium,
        _ => domain::ReasoningEffort::High,
    }
}

/// Code at the cursor as a chat.
pub(super) fn autocomplete(request: AutocompleteRequest) -> AIRequest {
    let about = [("File", &request.path), ("Language", &request.language)];
    let mut text: String = about
        .iter()
        .filter_map(|(what, value)| Some(format!("{what}: {}\n", value.as_ref()?)))
        .collect();
    for part in [
        "<before>",
        &request.prefix,
        "</before>\n<after>",
        &request.suffix,
        "</after>",
    ] {
        text.push_str(part);
    }
    AIRequest {
        system_prompt: Some(COMPLETE.to_owned()),
        max_tokens: Some(request.max_tokens.unwrap_or(COMPLETION_TOKENS)),
        temperature: request.temperature,
        stop: request.stop,
        stream: request.stream,
        ..AIRequest::new(
            request.model.unwrap_or_default(),
            vec![ai::Message::user(text)],
        )
    }
}

/// A question about a file as a chat.
pub(super) fn file_analysis(request: FileAnalysisRequest) -> AIRequest {
    let language = request
        .language
        .map(|language| format!(" ({language})"))
        .unwrap_or_default();
    let text = format!(
        "The file {}{language}:\n<file>\n{}\n</file>\n\n{}",
        request.path, request.content, request.question
    );
    AIRequest {
        system_prompt: Some(ANALYZE.to_owned()),
        max_tokens: request.max_tokens,
        stream: request.stream,
        ..AIRequest::new(
            request.model.unwrap_or_default(),
            vec![ai::Message::user(text)],
        )
    }
}

/// The size of a request, from the length of its texts.
pub(super) fn estimated_tokens(request: &AIRequest) -> u64 {
    let of = |text: &str| (text.len() as u64).div_ceil(BYTES_PER_TOKEN);
    let json = |value: &Value| of(&value.to_string());
    let mut tokens = request
        .system_prompt
        .as_deref()
        .map_or(0, |text| of(text) + TOKENS_PER_MESSAGE);
    for message in &request.messages {
        tokens += TOKENS_PER_MESSAGE;
        tokens += match &message.content {
            Content::Text(text) => of(text),
            Content::Parts(parts) => parts
                .iter()
                .map(|part| match part {
                    Part::Text { text, .. } => of(text),
                    Part::Image { .. } => TOKENS_PER_IMAGE,
                })
                .sum(),
        };
        let calls = message.tool_calls.iter().flatten();
        tokens += calls
            .map(|call| of(&call.name) + json(&call.parameters))
            .sum::<u64>();
    }
    let tools = request.tools.iter().flatten();
    let tool = |tool: &ai::Tool| {
        of(&tool.name) + tool.description.as_deref().map_or(0, of) + json(&tool.parameters)
    };
    tokens + tools.map(tool).sum::<u64>()
}

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
    },
    Citation {
        #[serde(skip_serializing_if = "Option::is_none")]
        url: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        title: Option<&'a str>,
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
pub(super) fn write_item(item: &mut Vec<u8>, event: Event<'_>, provider: &str, asked: &str) {
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
            signature: _,
        }) => Item::ToolCall {
            index,
            id,
            name,
            arguments,
        },
        Event::Citation(domain::Citation { url, title, .. }) => Item::Citation { url, title },
        Event::RedactedReasoning(_) => Item::Reasoning {
            text: "",
            signature: None,
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
pub(super) fn write_finish(
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
pub(super) fn response(answer: ChatResponse, provider: &str, asked: &str) -> AIResponse {
    let call = |call: domain::ToolCall| ai::ToolCall {
        id: call.id,
        name: call.name,
        parameters: match call.arguments.trim() {
            "" => Value::Object(serde_json::Map::new()),
            // A bad model's arguments are no JSON: then they are a string, as it wrote them.
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        },
    };
    let reasoning = answer.reasoning();
    let calls: Vec<_> = answer.tool_calls.into_iter().map(call).collect();
    let citations: Vec<_> = answer
        .citations
        .into_iter()
        .filter_map(|source| {
            Some(ai::Citation {
                url: source.url?,
                title: source.title,
            })
        })
        .collect();
    AIResponse {
        model: answer.model.unwrap_or_else(|| asked.to_owned()),
        provider: provider.to_owned(),
        content: answer.text,
        reasoning: Some(reasoning).filter(|text| !text.is_empty()),
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

fn usage(usage: domain::Usage) -> ai::Usage {
    ai::Usage {
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cached_input_tokens: Some(usage.cached_input_tokens).filter(|tokens| *tokens > 0),
        reasoning_tokens: Some(usage.reasoning_tokens).filter(|tokens| *tokens > 0),
    }
}

fn finish_reason(reason: domain::FinishReason) -> ai::FinishReason {
    match reason {
        domain::FinishReason::Stop => ai::FinishReason::Stop,
        domain::FinishReason::Length => ai::FinishReason::Length,
        domain::FinishReason::ToolCalls => ai::FinishReason::ToolCalls,
        domain::FinishReason::ContentFilter => ai::FinishReason::ContentFilter,
        domain::FinishReason::Refusal | domain::FinishReason::Unknown => ai::FinishReason::Other,
    }
}

/// A provider's model.
pub(super) fn model(model: domain::ModelInfo, provider: &str) -> ai::Model {
    ai::Model {
        id: model.id,
        provider: provider.to_owned(),
        context_window: model.context_length,
    }
}

/// What a provider's error is for a client.
pub(super) fn provider_error(error: &ProviderError) -> ErrorBody {
    let code = match error.kind {
        ErrorKind::Authentication => ErrorCode::AuthenticationFailed,
        ErrorKind::Permission => ErrorCode::ProviderDenied,
        ErrorKind::ModelNotFound => ErrorCode::ModelNotFound,
        ErrorKind::InvalidRequest | ErrorKind::RequestTooLarge => ErrorCode::ProviderRejected,
        ErrorKind::ContextLengthExceeded => ErrorCode::ContextTooLong,
        ErrorKind::RateLimited => ErrorCode::RateLimited,
        ErrorKind::QuotaExhausted => ErrorCode::QuotaExhausted,
        ErrorKind::BudgetSpent => ErrorCode::BudgetSpent,
        ErrorKind::Overloaded => ErrorCode::ProviderOverloaded,
        ErrorKind::ContentFiltered => ErrorCode::ContentFiltered,
        // A wrong address, too: the advice is to check the base URL.
        ErrorKind::ConnectionFailed | ErrorKind::NotFound | ErrorKind::TimedOut(Phase::Connect) => {
            ErrorCode::ProviderUnreachable
        }
        ErrorKind::TimedOut(Phase::Deadline) => ErrorCode::DeadlineExceeded,
        ErrorKind::TimedOut(_) => ErrorCode::ProviderTimeout,
        ErrorKind::StreamCut => ErrorCode::StreamCut,
        ErrorKind::MalformedResponse => ErrorCode::ProviderMalformed,
        ErrorKind::Unsupported => ErrorCode::Unsupported,
        // The provider cannot be used as it is configured.
        ErrorKind::Configuration => ErrorCode::NoProvider,
        // `ProviderInternal`, and kinds that come later.
        _ => ErrorCode::ProviderFailed,
    };
    let whole = error.to_string();
    let message = whole
        .strip_prefix(&format!("{}: ", error.provider))
        .unwrap_or(&whole);
    ErrorBody {
        provider: Some(error.provider.to_string()).filter(|name| !name.is_empty()),
        status: error.status,
        retry_after_ms: error.retry_after.map(milliseconds),
        ..ErrorBody::new(code, message)
    }
}

fn milliseconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

/// What a model's name that leads nowhere is for a client.
pub(super) fn catalog_error(error: &CatalogError) -> ErrorBody {
    let code = match error {
        CatalogError::Empty => ErrorCode::NoProvider,
        _ => ErrorCode::ModelNotFound,
    };
    ErrorBody::new(code, error.to_string())
}

/// An answer that ended too early, which a sound provider reports itself.
pub(super) fn without_finish(provider: &str) -> ErrorBody {
    let body = ErrorBody::new(
        ErrorCode::StreamCut,
        "the answer ended without its end mark",
    );
    ErrorBody {
        provider: Some(provider.to_owned()),
        ..body
    }
}

#[cfg(test)]
mod tests {
    use lapce_ai_proto::ai::StreamEvent;
    use serde_json::json;

    use super::*;

    fn request(json: &Value) -> Result<ChatRequest, ErrorBody> {
        chat_request(
            serde_json::from_value(json.clone()).unwrap(),
            "m".to_owned(),
        )
    }

    #[test]
    fn a_request_arrives_whole() {
        let chat = request(&json!({
            "model": "p/m", "systemPrompt": "s", "temperature": 0.5, "maxTokens": 9, "topP": 0.9, "stop": ["x"],
            "seed": -3, "stream": false, "metadata": {"a": "b"}, "toolChoice": {"name": "add"},
            "reasoning": {"effort": "low"},
            "responseFormat": {"type": "jsonSchema", "name": "n", "schema": {"z": 1, "a": 2}, "strict": true},
            "tools": [{"name": "add", "description": "d", "parameters": {"type": "object", "a": 1}}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image", "url": "https://x/y"},
                    {"type": "image", "mediaType": "image/png", "data": "AA=="}]},
                {"role": "assistant", "content": "", "toolCalls": [
                    {"id": "1", "name": "add", "parameters": {"z": 1, "a": 2}}, {"id": "2", "name": "add", "parameters": "{bad"}]},
                {"role": "tool", "content": "4", "toolCallId": "1"},
            ],
        }))
        .unwrap();
        assert_eq!(
            (chat.model.as_str(), chat.system.as_deref(), chat.stream),
            ("m", Some("s"), false)
        );
        assert_eq!(
            (chat.temperature, chat.top_p, chat.max_tokens, chat.seed),
            (Some(0.5), Some(0.9), Some(9), Some(-3))
        );
        assert_eq!(chat.stop, ["x"]);
        assert_eq!(
            chat.tool_choice,
            Some(domain::ToolChoice::Tool("add".into()))
        );
        assert_eq!(chat.reasoning, Some(domain::ReasoningEffort::Low));
        assert_eq!(chat.metadata["a"], "b");
        assert_eq!(
            chat.tools[0].parameters.as_ref().unwrap().get(),
            r#"{"type":"object","a":1}"#
        );
        let Some(domain::ResponseFormat::JsonSchema {
            schema,
            strict: Some(true),
            ..
        }) = &chat.response_format
        else {
            panic!()
        };
        assert_eq!(schema.get(), r#"{"z":1,"a":2}"#, "in the caller's order");
        assert_eq!(chat.messages[0].content.len(), 3);
        assert!(chat.messages[1].content.is_empty());
        assert_eq!(chat.messages[1].tool_calls[0].arguments, r#"{"z":1,"a":2}"#);
        assert_eq!(chat.messages[1].tool_calls[1].arguments, "{bad");
        assert_eq!(chat.messages[2].tool_call_id.as_deref(), Some("1"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (json, part) in [
            (json!({"model": "", "messages": []}), "messages is empty"),
            (
                json!({"model": "", "messages": [{"role": "tool", "content": "x"}]}),
                "messages[0] has role \"tool\"",
            ),
            (
                json!({"model": "", "messages": [{"role": "user", "content": [{"type": "image"}]}]}),
                "an image has either",
            ),
        ] {
            let error = request(&json).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest);
            assert!(error.message.contains(part), "{error}");
        }
        let error = parse::<AIRequest>(b"{\"messages\": [],\n \"model\": 5}").unwrap_err();
        assert!(error.message.contains("line 2, column 11"), "{error}");
    }

    #[test]
    fn items_read_as_events() {
        let tokens = domain::Usage {
            input_tokens: 1,
            output_tokens: 2,
            reasoning_tokens: 1,
            ..domain::Usage::default()
        };
        let delta = domain::ToolCallDelta {
            index: 1,
            id: Some("c"),
            name: None,
            arguments: "{\"",
            signature: None,
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
                },
            ),
            (
                Event::Citation(domain::Citation {
                    url: Some("u"),
                    ..domain::Citation::default()
                }),
                StreamEvent::Citation(ai::Citation {
                    url: "u".into(),
                    title: None,
                }),
            ),
            (
                Event::Usage(tokens),
                StreamEvent::Usage(ai::Usage {
                    input_tokens: 1,
                    output_tokens: 2,
                    cached_input_tokens: None,
                    reasoning_tokens: Some(1),
                }),
            ),
            (
                Event::Finish(domain::FinishReason::Refusal),
                StreamEvent::Finish {
                    reason: ai::FinishReason::Other,
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
            ..Default::default()
        };
        let answer = ChatResponse {
            text: "hi".into(),
            tool_calls: vec![call(""), call("{\"a\":1}"), call("{bad")],
            finish: Some(domain::FinishReason::Length),
            ..ChatResponse::default()
        };
        let response = response(answer, "p", "asked");
        assert_eq!(
            (response.model.as_str(), response.provider.as_str()),
            ("asked", "p")
        );
        assert_eq!(response.finish_reason, ai::FinishReason::Length);
        let parameters: Vec<_> = response
            .tool_calls
            .unwrap()
            .into_iter()
            .map(|call| call.parameters)
            .collect();
        assert_eq!(parameters, [json!({}), json!({"a": 1}), json!("{bad")]);
        assert_eq!(
            (response.reasoning, response.citations, response.usage),
            (None, None, None)
        );
    }

    #[test]
    fn errors_keep_what_the_provider_said() {
        let mut error = ProviderError::new(ErrorKind::RateLimited, "slow down");
        error.provider = "groq".into();
        error.status = Some(429);
        error.retry_after = Some(Duration::from_millis(1500));
        let body = provider_error(&error);
        assert_eq!(
            (body.code, body.status, body.retry_after_ms),
            (ErrorCode::RateLimited, Some(429), Some(1500))
        );
        assert_eq!(body.provider.as_deref(), Some("groq"));
        assert_eq!(
            body.message,
            "too many requests (HTTP 429): slow down; try again in 2 s"
        );
        for (kind, code) in [
            (
                ErrorKind::TimedOut(Phase::Connect),
                ErrorCode::ProviderUnreachable,
            ),
            (
                ErrorKind::TimedOut(Phase::NextToken),
                ErrorCode::ProviderTimeout,
            ),
            (ErrorKind::ProviderInternal, ErrorCode::ProviderFailed),
            (ErrorKind::Configuration, ErrorCode::NoProvider),
        ] {
            assert_eq!(provider_error(&ProviderError::new(kind, "")).code, code);
        }
        assert_eq!(
            catalog_error(&CatalogError::Empty).code,
            ErrorCode::NoProvider
        );
    }

    #[test]
    fn code_and_files_become_chats() {
        let complete = autocomplete(AutocompleteRequest {
            prefix: "fn a() {".into(),
            suffix: "}".into(),
            path: Some("a.rs".into()),
            ..AutocompleteRequest::default()
        });
        let Content::Text(text) = &complete.messages[0].content else {
            panic!()
        };
        assert_eq!(
            text,
            "File: a.rs\n<before>fn a() {</before>\n<after>}</after>"
        );
        assert_eq!(complete.max_tokens, Some(COMPLETION_TOKENS));
        let analysis = file_analysis(FileAnalysisRequest {
            path: "a.rs".into(),
            content: "fn".into(),
            question: "why?".into(),
            language: Some("Rust".into()),
            ..FileAnalysisRequest::default()
        });
        let Content::Text(text) = &analysis.messages[0].content else {
            panic!()
        };
        assert_eq!(text, "The file a.rs (Rust):\n<file>\nfn\n</file>\n\nwhy?");
        assert_eq!(
            estimated_tokens(&AIRequest::new("", vec![ai::Message::user("12345678")])),
            6
        );
    }
}
