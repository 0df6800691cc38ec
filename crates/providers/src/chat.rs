//! What a caller asks for: one chat request, in terms that every provider's format can be written from.
//!
//! The names follow the field's common ground. What a provider does not know is left out of its request by its wire
//! format; the documentation of each field says so where it matters.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// One chat request. Build it with [`ChatRequest::new`] and set the public fields.
#[derive(Clone, Debug, Default)]
pub struct ChatRequest {
    /// The model, by the name that the provider itself uses (no `provider/` prefix).
    pub model: String,
    /// The system prompt. It goes before all messages.
    pub system: Option<String>,
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// The tools that the model may call.
    pub tools: Vec<Tool>,
    /// Whether and which tool must be called; `None` leaves it to the provider (`Auto` when there are tools).
    pub tool_choice: Option<ToolChoice>,
    /// Whether several tools may be called in one turn.
    pub parallel_tool_calls: Option<bool>,
    /// The form of the answer; `None` is plain text.
    pub response_format: Option<ResponseFormat>,
    /// Sampling temperature, usually 0 to 2.
    pub temperature: Option<f64>,
    /// Nucleus sampling, 0 to 1.
    pub top_p: Option<f64>,
    /// The most tokens to generate, reasoning included.
    pub max_tokens: Option<u32>,
    /// Texts that end the answer where the model writes one of them. OpenAI takes four at most.
    pub stop: Vec<String>,
    /// Asks for repeatable sampling, where the provider offers it.
    pub seed: Option<i64>,
    /// How hard a reasoning model should think. Left out where the provider has no such setting.
    pub reasoning: Option<ReasoningEffort>,
    /// The most tokens of thinking, for providers that take a number; others take the effort that is near it.
    pub reasoning_budget: Option<u32>,
    /// Marks the system prompt as worth caching, with the tools before it, where the provider wants to be told.
    pub cache_system: bool,
    /// Marks the tools as worth caching, where the provider wants to be told.
    pub cache_tools: bool,
    /// A stable name of the end user, for the provider's abuse detection. Left out where the provider has none.
    pub user: Option<String>,
    /// Labels for logs and accounts. Sent only where the provider takes them without a further condition;
    /// OpenAI chat completions does not (it wants them only with `store`), so they are left out there.
    pub metadata: BTreeMap<String, String>,
    /// Whether the provider should stream its answer. The events are the same either way; without streaming the
    /// text comes in one piece.
    pub stream: bool,
}

impl ChatRequest {
    /// A streaming request for `model`, with nothing else set.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            stream: true,
            ..Self::default()
        }
    }

    /// How hard to think, for providers that take no number.
    pub fn effort(&self) -> Option<ReasoningEffort> {
        let near = self.reasoning_budget.map(ReasoningEffort::for_budget);
        self.reasoning.or(near)
    }

    /// The most tokens of thinking, for providers that take a number.
    pub fn budget(&self) -> Option<u32> {
        let about = self.reasoning.map(ReasoningEffort::budget);
        self.reasoning_budget.or(about)
    }

    /// Adds a message.
    #[must_use]
    pub fn with(mut self, message: Message) -> Self {
        self.messages.push(message);
        self
    }
}

/// Who speaks in a [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions of the application.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call, see [`Message::tool_call_id`].
    Tool,
}

/// One message of the conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order. May be empty for an assistant's message that only calls tools.
    pub content: Vec<Content>,
    /// The tools that the assistant called in this turn.
    pub tool_calls: Vec<ToolCall>,
    /// For [`Role::Tool`]: the [`ToolCall::id`] that this is the result of.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message of one text.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: vec![Content::Text(text.into())],
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }

    /// What the person says.
    pub fn user(text: impl Into<String>) -> Self {
        Self::text(Role::User, text)
    }

    /// What the model said.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::text(Role::Assistant, text)
    }

    /// The result of the tool call `id`.
    pub fn tool_result(id: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            tool_call_id: Some(id.into()),
            ..Self::text(Role::Tool, text)
        }
    }
}

/// One part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Text.
    Text(String),
    /// A picture, for models that can see.
    Image(Image),
    /// What a model thought in an earlier turn, to be handed back to providers that want it. Others leave it out.
    /// It stands where it was thought: before the text or the calls that followed it.
    Reasoning {
        /// The thought.
        text: String,
        /// The provider's proof that the thought is its own, to be kept as it came: [`HttpProvider`](crate::HttpProvider)
        /// puts its name before it, and leaves out those of others.
        signature: Option<String>,
    },
    /// A thought of an earlier turn that the provider has encrypted, to be handed back as it came.
    RedactedReasoning(String),
    /// Everything up to here is worth caching. Left out where the provider finds that out itself.
    CachePoint,
}

/// A picture in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Where its bytes are.
    pub source: ImageSource,
    /// How closely to look; `None` leaves it to the provider.
    pub detail: Option<ImageDetail>,
}

/// Where the bytes of an [`Image`] are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// At an address that the provider fetches itself.
    Url(String),
    /// In the request.
    Base64 {
        /// For example `image/png`.
        media_type: String,
        /// The bytes in standard base64 with padding.
        data: String,
    },
}

/// How closely a model looks at an [`Image`]: more detail costs more tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageDetail {
    /// The provider decides.
    Auto,
    /// A small version of the picture.
    Low,
    /// The whole picture.
    High,
}

/// A tool call made by a model.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ToolCall {
    /// The provider's id; the result refers to it.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments as the model wrote them: JSON if the model is good, but nobody guarantees it.
    pub arguments: String,
    /// The provider's proof of the thought behind the call (Gemini), to be handed back.
    pub signature: Option<String>,
}

/// A tool that a model may call.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Its name: letters, digits, `_` and `-`, 64 characters at most for most providers.
    pub name: String,
    /// What it does and when to use it, for the model.
    pub description: Option<String>,
    /// JSON Schema of its arguments, kept as text so that the order of properties survives.
    pub parameters: Option<Box<RawValue>>,
    /// Whether the provider should hold the arguments to the schema strictly, where it can.
    pub strict: Option<bool>,
}

/// Whether the model must call a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    Auto,
    /// No tool.
    None,
    /// Some tool.
    Required,
    /// The tool of this name.
    Tool(String),
}

/// The form of the answer.
#[derive(Clone, Debug)]
pub enum ResponseFormat {
    /// Any JSON object. Most providers want the word JSON in a message, too.
    JsonObject,
    /// JSON that fits a schema.
    JsonSchema {
        /// A name for the schema: letters, digits, `_` and `-`.
        name: String,
        /// JSON Schema, kept as text so that the order of properties survives.
        schema: Box<RawValue>,
        /// Whether the provider should guarantee the fit, where it can.
        strict: Option<bool>,
    },
}

/// How hard a reasoning model should think.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningEffort {
    /// Not at all, where the model allows it.
    None,
    /// As little as possible.
    Minimal,
    /// Little.
    Low,
    /// The usual amount.
    Medium,
    /// Much.
    High,
    /// As much as the model can.
    ExtraHigh,
}

impl ReasoningEffort {
    /// The effort that other providers make for about so many tokens of thinking.
    pub fn for_budget(tokens: u32) -> Self {
        match tokens {
            0 => Self::None,
            1..=1_024 => Self::Minimal,
            1_025..=4_096 => Self::Low,
            4_097..=16_384 => Self::Medium,
            _ => Self::High,
        }
    }

    /// About so many tokens of thinking, for providers that take a number.
    pub fn budget(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Minimal => 1_024,
            Self::Low => 4_096,
            Self::Medium => 8_192,
            Self::High => 16_384,
            Self::ExtraHigh => 32_768,
        }
    }
}

/// A model that a provider offers.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ModelInfo {
    /// The name to put into [`ChatRequest::model`].
    pub id: String,
    /// A name for people, if the provider gives one.
    pub display_name: Option<String>,
    /// Who made or offers it, in the provider's words.
    pub owner: Option<String>,
    /// The most tokens that prompt and answer may have together, if known.
    pub context_length: Option<u64>,
    /// The most tokens of an answer, if known.
    pub max_output_tokens: Option<u64>,
}
