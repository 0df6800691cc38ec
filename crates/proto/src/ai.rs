//! The AI messages: JSON, a port of the interface that editor extensions speak (`docs/protocol.md` section 7).
//!
//! ```
//! use lapce_ai_proto::ai::{AIRequest, Message};
//! let request = AIRequest::new("openai/gpt-4o", vec![Message::user("hello")]);
//! let json = serde_json::to_string(&request).unwrap();
//! assert_eq!(json, r#"{"messages":[{"role":"user","content":"hello"}],"model":"openai/gpt-4o"}"#);
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Attempt;

/// A conversation, and how to answer it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AIRequest {
    /// The turns so far.
    pub messages: Vec<Message>,
    /// `provider/model`, a bare model, or empty for the daemon's default.
    pub model: String,
    /// Randomness, as the provider understands it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Longest answer, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// What the model may call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Tool>>,
    /// Instructions before the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Events as they come (the default), or one [`AIResponse`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Nucleus sampling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Texts at which the answer stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Vec<String>>,
    /// Whether tools may, must or must not be called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// The form of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format: Option<ResponseFormat>,
    /// How much to think.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<Reasoning>,
    /// For providers that can repeat themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Passed on to providers that take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Whether the answer may come from the daemon's cache, if it has one. Unless it is said, the daemon's configuration decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<bool>,
}

impl AIRequest {
    /// A request with nothing but a conversation.
    pub fn new(model: impl Into<String>, messages: Vec<Message>) -> Self {
        Self {
            model: model.into(),
            messages,
            ..Self::default()
        }
    }

    /// Whether events are wanted rather than one answer.
    pub fn wants_stream(&self) -> bool {
        self.stream.unwrap_or(true)
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool's result.
    Tool,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Content,
    /// What the model called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Which call a tool's result answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A person's text.
    pub fn user(text: impl Into<String>) -> Self {
        Self {
            role: Role::User,
            content: Content::Text(text.into()),
            tool_calls: None,
            tool_call_id: None,
        }
    }
}

/// Text, or parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Text and images in order.
    Parts(Vec<Part>),
}

/// A piece of a message's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Part {
    /// Text.
    #[serde(rename_all = "camelCase")]
    Text {
        /// The text.
        text: String,
        /// The provider may cache the conversation up to here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cache_control: Option<bool>,
    },
    /// An image, by value or by address.
    #[serde(rename_all = "camelCase")]
    Image {
        /// Such as `image/png`, with `data`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        media_type: Option<String>,
        /// Base64.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<String>,
        /// Where the provider can fetch it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
    },
}

/// A call that the model made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The call's id; its result names it.
    pub id: String,
    /// Which tool.
    pub name: String,
    /// The arguments.
    pub parameters: Value,
}

/// What the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does, for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema of its arguments.
    pub parameters: Value,
}

/// Whether tools may, must or must not be called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ToolChoice {
    /// The model decides.
    Auto,
    /// No calls.
    None,
    /// At least one call.
    Required,
    /// This tool.
    #[serde(untagged)]
    Named {
        /// Its name.
        name: String,
    },
}

/// The form of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ResponseFormat {
    /// Prose.
    Text,
    /// Some JSON object.
    JsonObject,
    /// JSON after a schema.
    JsonSchema {
        /// The schema's name.
        name: String,
        /// The schema.
        schema: Value,
        /// Whether the provider must hold to it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        strict: Option<bool>,
    },
}

/// How much to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reasoning {
    /// By level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// By tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_tokens: Option<u32>,
}

/// A level of thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Effort {
    Minimal,
    Low,
    Medium,
    High,
}

/// Code around the cursor.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AutocompleteRequest {
    /// Text before the cursor.
    pub prefix: String,
    /// Text after the cursor.
    pub suffix: String,
    /// The file's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The file's language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// As in [`AIRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Longest completion, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Randomness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Texts at which the completion stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Vec<String>>,
    /// As in [`AIRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
}

/// A question about a file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileAnalysisRequest {
    /// The file's path, for the model.
    pub path: String,
    /// The file's text.
    pub content: String,
    /// The question.
    pub question: String,
    /// The file's language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// As in [`AIRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Longest answer, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// As in [`AIRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
}

/// Texts to turn into vectors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EmbeddingsRequest {
    /// As in [`AIRequest`].
    pub model: String,
    /// The texts.
    pub input: Vec<String>,
}

/// One vector per text.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EmbeddingsResponse {
    /// The model that made them.
    pub model: String,
    /// In the order of the texts.
    pub embeddings: Vec<Vec<f32>>,
    /// What it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// Which models to list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelsRequest {
    /// Only this provider's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

/// The models that can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelList {
    /// Each as `provider/id` can stand in [`AIRequest::model`].
    pub models: Vec<Model>,
    /// Providers that could not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ModelListError>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// The provider's name for it.
    pub id: String,
    /// The provider's name in the daemon.
    pub provider: String,
    /// Longest conversation, in tokens, where the provider tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_window: Option<u64>,
}

/// A provider that could not list its models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelListError {
    /// Its name in the daemon.
    pub provider: String,
    /// Why.
    pub message: String,
}

/// The size of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCount {
    /// How many.
    pub tokens: u64,
    /// Counted by the provider, or estimated from the text's length.
    pub exact: bool,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AIResponse {
    /// The model that answered.
    pub model: String,
    /// The provider that answered.
    pub provider: String,
    /// The answer.
    pub content: String,
    /// The model's thinking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// What the model called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// What the answer rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub citations: Option<Vec<Citation>>,
    /// What it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Who was asked, in order. Empty where the first one answered at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// What the answer cost, in billionths of a US dollar. Absent where the model's price is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_nano_usd: Option<u64>,
    /// Whether it came from the daemon's cache, or from a request under way that was the same.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cached: bool,
    /// What there is to say about it: soft budgets that are exceeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A source of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Citation {
    /// Where.
    pub url: String,
    /// Its title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
}

/// Tokens that an answer took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// In the request, cached ones included.
    pub input_tokens: u64,
    /// In the answer, thinking included.
    pub output_tokens: u64,
    /// Of the input, those read from the provider's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input_tokens: Option<u64>,
    /// Of the output, those spent thinking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<u64>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FinishReason {
    /// It was complete.
    #[default]
    Stop,
    /// `max_tokens` was reached.
    Length,
    /// The model waits for the results of its calls.
    ToolCalls,
    /// The provider held the rest back.
    ContentFilter,
    /// For a reason of the provider's own, and any that this version does not know.
    #[serde(other)]
    Other,
}

/// One item of a streamed response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum StreamEvent {
    /// First, once.
    Start {
        /// The provider that answers.
        provider: String,
        /// The model that answers.
        model: String,
        /// The provider's id of the answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
    /// A piece of the answer.
    Text {
        /// The piece.
        text: String,
    },
    /// A piece of the model's thinking.
    Reasoning {
        /// The piece.
        text: String,
        /// What must be sent back with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<String>,
    },
    /// A piece of a call.
    ToolCall {
        /// Which call of this answer.
        index: u32,
        /// The call's id, once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// Which tool, once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// A piece of the arguments' JSON.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arguments: Option<String>,
    },
    /// A source.
    Citation(Citation),
    /// What it took so far.
    Usage(Usage),
    /// Last, once.
    #[serde(rename_all = "camelCase")]
    Finish {
        /// Why.
        reason: FinishReason,
        /// Who was asked, in order. Empty where the first one answered at once.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        attempts: Vec<Attempt>,
        /// What the answer cost, in billionths of a US dollar. Absent where the model's price is not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cost_nano_usd: Option<u64>,
        /// Whether it came from the daemon's cache, or from a request under way that was the same.
        #[serde(default, skip_serializing_if = "is_false")]
        cached: bool,
        /// What there is to say about it: soft budgets that are exceeded.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        warnings: Vec<String>,
    },
    /// An event that this version does not know.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_fields_are_left_out_and_unknown_ones_ignored() {
        let json = r#"{"messages":[{"role":"tool","content":[{"type":"text","text":"4"}],"toolCallId":"c1","new":1}],
            "model":"m","maxTokens":5,"toolChoice":{"name":"add"},"later":{}}"#;
        let request: AIRequest = serde_json::from_str(json).unwrap();
        assert_eq!(
            request.tool_choice,
            Some(ToolChoice::Named {
                name: "add".to_owned()
            })
        );
        assert_eq!(
            serde_json::to_string(&request).unwrap(),
            r#"{"messages":[{"role":"tool","content":[{"type":"text","text":"4"}],"toolCallId":"c1"}],"model":"m","maxTokens":5,"toolChoice":{"name":"add"}}"#
        );
        let auto: AIRequest =
            serde_json::from_str(r#"{"messages":[],"model":"","toolChoice":"required"}"#).unwrap();
        assert_eq!(auto.tool_choice, Some(ToolChoice::Required));
    }

    #[test]
    fn events_start_with_their_type() {
        let event = StreamEvent::ToolCall {
            index: 1,
            id: None,
            name: None,
            arguments: Some("{}".to_owned()),
        };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json, r#"{"type":"toolCall","index":1,"arguments":"{}"}"#);
        let usage = StreamEvent::Usage(Usage {
            input_tokens: 3,
            ..Usage::default()
        });
        let json = serde_json::to_string(&usage).unwrap();
        assert_eq!(json, r#"{"type":"usage","inputTokens":3,"outputTokens":0}"#);
        assert_eq!(serde_json::from_str::<StreamEvent>(&json).unwrap(), usage);
        assert_eq!(
            serde_json::from_str::<StreamEvent>(r#"{"type":"hologram","x":1}"#).unwrap(),
            StreamEvent::Unknown
        );
        assert_eq!(
            serde_json::from_str::<StreamEvent>(r#"{"type":"finish","reason":"boredom"}"#).unwrap(),
            StreamEvent::Finish {
                reason: FinishReason::Other,
                attempts: Vec::new(),
                cost_nano_usd: None,
                cached: false,
                warnings: Vec::new(),
            }
        );
    }
}
