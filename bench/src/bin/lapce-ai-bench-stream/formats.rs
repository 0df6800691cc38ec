//! The wire formats, each with a stream as its provider sends one: what begins it, one token, what ends it.
//!
//! A row is measured where the profile is in the table of providers. `TOKEN` stands for the token as a JSON string.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use lapce_ai_providers::{Decoding, Profile, Settings, Wire};

use super::ordinary;

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Format {
    /// A provider that speaks it.
    pub(crate) profile: &'static str,
    pub(crate) media_type: &'static str,
    pub(crate) begin: &'static str,
    token: &'static str,
    pub(crate) end: &'static str,
    /// The text in one event, read the ordinary way.
    pub(crate) text: fn(&str) -> serde_json::Result<String>,
}

pub(crate) const EVENT_STREAM: &str = "text/event-stream";
pub(crate) const JSON_LINES: &str = "application/x-ndjson";

/// Every format that a stream is known of.
const FORMATS: &[Format] = &[
    Format {
        profile: "openai",
        media_type: EVENT_STREAM,
        begin: concat!(
            r#"data: {"id":"chatcmpl-CfR2x0nJ5Yq8","object":"chat.completion.chunk","created":1764064800,"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_b54fe76834","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            "\n\n"
        ),
        token: concat!(
            r#"data: {"id":"chatcmpl-CfR2x0nJ5Yq8","object":"chat.completion.chunk","created":1764064800,"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_b54fe76834","choices":[{"index":0,"delta":{"content":TOKEN},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            "\n\n"
        ),
        end: concat!(
            r#"data: {"id":"chatcmpl-CfR2x0nJ5Yq8","object":"chat.completion.chunk","created":1764064800,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}"#,
            "\n\n",
            r#"data: {"id":"chatcmpl-CfR2x0nJ5Yq8","object":"chat.completion.chunk","created":1764064800,"model":"gpt-4o-mini-2024-07-18","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}"#,
            "\n\ndata: [DONE]\n\n"
        ),
        text: ordinary::chat_completions,
    },
    Format {
        profile: "openai-responses",
        media_type: EVENT_STREAM,
        begin: concat!(
            "event: response.created\n",
            r#"data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_68f1","object":"response","created_at":1764064800,"status":"in_progress","model":"gpt-4o-mini-2024-07-18","output":[]}}"#,
            "\n\nevent: response.output_item.added\n",
            r#"data: {"type":"response.output_item.added","sequence_number":1,"output_index":0,"item":{"id":"msg_68f1","type":"message","status":"in_progress","content":[],"role":"assistant"}}"#,
            "\n\n"
        ),
        token: concat!(
            "event: response.output_text.delta\n",
            r#"data: {"type":"response.output_text.delta","sequence_number":3,"item_id":"msg_68f1","output_index":0,"content_index":0,"delta":TOKEN,"logprobs":[],"obfuscation":"Zk3PqA"}"#,
            "\n\n"
        ),
        end: concat!(
            "event: response.completed\n",
            r#"data: {"type":"response.completed","sequence_number":9,"response":{"id":"resp_68f1","object":"response","created_at":1764064800,"status":"completed","model":"gpt-4o-mini-2024-07-18","output":[],"usage":{"input_tokens":9,"output_tokens":12,"total_tokens":21}}}"#,
            "\n\n"
        ),
        text: ordinary::responses,
    },
    Format {
        profile: "anthropic",
        media_type: EVENT_STREAM,
        begin: concat!(
            "event: message_start\n",
            r#"data: {"type":"message_start","message":{"id":"msg_01XFDUDYJgAACzvnptvVoYEL","type":"message","role":"assistant","model":"claude-sonnet-4-5-20250929","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,"output_tokens":1}}}"#,
            "\n\nevent: content_block_start\n",
            r#"data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
            "\n\n"
        ),
        token: concat!(
            "event: content_block_delta\n",
            r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":TOKEN}}"#,
            "\n\n"
        ),
        end: concat!(
            "event: content_block_stop\n",
            r#"data: {"type":"content_block_stop","index":0}"#,
            "\n\nevent: message_delta\n",
            r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":15}}"#,
            "\n\nevent: message_stop\n",
            r#"data: {"type":"message_stop"}"#,
            "\n\n"
        ),
        text: ordinary::messages,
    },
    Format {
        profile: "gemini",
        media_type: EVENT_STREAM,
        begin: "",
        token: concat!(
            r#"data: {"candidates":[{"content":{"parts":[{"text":TOKEN}],"role":"model"},"index":0}],"usageMetadata":{"promptTokenCount":8,"candidatesTokenCount":3,"totalTokenCount":11,"promptTokensDetails":[{"modality":"TEXT","tokenCount":8}]},"modelVersion":"gemini-2.5-flash","responseId":"kR0laZ"}"#,
            "\r\n\r\n"
        ),
        end: concat!(
            r#"data: {"candidates":[{"content":{"parts":[{"text":""}],"role":"model"},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":8,"candidatesTokenCount":12,"totalTokenCount":20},"modelVersion":"gemini-2.5-flash","responseId":"kR0laZ"}"#,
            "\r\n\r\n"
        ),
        text: ordinary::gemini,
    },
    Format {
        profile: "cohere",
        media_type: EVENT_STREAM,
        begin: concat!(
            "event: message-start\n",
            r#"data: {"id":"321d178c-2c12-44d3-ae42-2f5510f6b1cc","type":"message-start","delta":{"message":{"role":"assistant","content":[],"tool_plan":"","tool_calls":[],"citations":[]}}}"#,
            "\n\nevent: content-start\n",
            r#"data: {"type":"content-start","index":0,"delta":{"message":{"content":{"type":"text","text":""}}}}"#,
            "\n\n"
        ),
        token: concat!(
            "event: content-delta\n",
            r#"data: {"type":"content-delta","index":0,"delta":{"message":{"content":{"text":TOKEN}}}}"#,
            "\n\n"
        ),
        end: concat!(
            "event: content-end\n",
            r#"data: {"type":"content-end","index":0}"#,
            "\n\nevent: message-end\n",
            r#"data: {"type":"message-end","delta":{"finish_reason":"COMPLETE","usage":{"billed_units":{"input_tokens":12,"output_tokens":7},"tokens":{"input_tokens":507,"output_tokens":10}}}}"#,
            "\n\n"
        ),
        text: ordinary::cohere,
    },
    Format {
        profile: "ollama",
        media_type: JSON_LINES,
        begin: "",
        token: concat!(
            r#"{"model":"gemma3","created_at":"2025-11-25T09:15:24.097767Z","message":{"role":"assistant","content":TOKEN},"done":false}"#,
            "\n"
        ),
        end: concat!(
            r#"{"model":"gemma3","created_at":"2025-11-25T09:15:24.143931Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":174560334,"load_duration":101397084,"prompt_eval_count":11,"prompt_eval_duration":13074791,"eval_count":18,"eval_duration":52479709}"#,
            "\n"
        ),
        text: ordinary::ollama,
    },
];

/// Texts as models write them into editors: words, code with line feeds and quotes, some beyond ASCII.
const TEXTS: [&str; 16] = [
    " the", " quick", "fn", " main", "()", " {\n", "    let", " x", " =", " \"", "Grüße", "\";\n",
    "}\n", " //", " 🙂", " return",
];

impl Format {
    /// The rows of which the table of providers has the profile, and the formats of that table without a row.
    pub(crate) fn all() -> (Vec<&'static Self>, Vec<&'static str>) {
        let rows = FORMATS
            .iter()
            .filter(|row| Profile::named(row.profile).is_some());
        let rows: Vec<_> = rows.collect();
        let kind = |profile: &Profile| std::mem::discriminant(&profile.format);
        let known: Vec<_> = rows
            .iter()
            .filter_map(|row| Profile::named(row.profile))
            .map(kind)
            .collect();
        let mut missing = Vec::new();
        let mut seen = known;
        for profile in lapce_ai_providers::PROFILES {
            if !seen.contains(&kind(profile)) {
                seen.push(kind(profile));
                missing.push(profile.name);
            }
        }
        (rows, missing)
    }

    pub(crate) fn profile(&self) -> Result<&'static Profile> {
        Profile::named(self.profile)
            .with_context(|| format!("no profile is called {}", self.profile))
    }

    /// The event of one token.
    pub(crate) fn token(&self, text: &str) -> String {
        self.token
            .replace("TOKEN", &serde_json::Value::from(text).to_string())
    }

    /// A stream of so many tokens, each in a chunk of its own, as they come while a model writes.
    pub(crate) fn stream(&self, tokens: usize) -> Stream {
        let texts: Vec<_> = TEXTS.iter().cycle().take(tokens).collect();
        let pieces = texts.iter().map(|text| self.token(text));
        let begin = [self.begin.to_owned()].into_iter();
        let chunks = begin.chain(pieces).chain([self.end.to_owned()]);
        Stream {
            chunks: chunks
                .filter(|chunk| !chunk.is_empty())
                .map(Bytes::from)
                .collect(),
            found: Found {
                tokens,
                bytes: texts.iter().map(|text| text.len()).sum(),
            },
        }
    }

    fn wire(&self) -> Result<Arc<dyn Wire>> {
        let profile = self.profile()?;
        let settings = Settings {
            base_url: Some("http://127.0.0.1:1".into()),
            key: Some("none".into()),
            ..Settings::default()
        };
        Ok(profile.wire(&settings)?)
    }

    /// Our decoder for an answer in this format.
    pub(crate) fn decoding(&self) -> Result<Decoding> {
        let head = http::Response::builder().header("content-type", self.media_type);
        let (head, ()) = head.body(())?.into_parts();
        Ok(Decoding::new(self.wire()?.decoder(&head, 1 << 20)?))
    }
}

/// The body of an answer.
pub(crate) struct Stream {
    pub(crate) chunks: Vec<Bytes>,
    /// What is in it.
    pub(crate) found: Found,
}

/// What was read from a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) tokens: usize,
    /// Of text.
    pub(crate) bytes: usize,
}

impl Found {
    pub(crate) fn add(&mut self, text: &str) {
        if !text.is_empty() {
            self.tokens += 1;
            self.bytes += text.len();
        }
    }

    /// # Errors
    /// Something else was read than is in the stream.
    pub(crate) fn check(self, stream: &Stream) -> Result<()> {
        if self != stream.found {
            bail!("{self:?} was read from a stream of {:?}", stream.found);
        }
        Ok(())
    }
}
