//! What a provider can do.

/// One thing that a provider may be able to do. Each is proven by a fixture of the conformance tests,
/// `tests/fixtures/<profile>/<feature>.txt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Feature {
    /// An answer in one piece.
    Whole,
    /// An answer as it is made.
    Stream,
    /// The system prompt, placed where the provider wants it.
    System,
    /// Tools: their definitions, the choice among them, several calls at once, arguments in pieces.
    Tools,
    /// The results of tool calls.
    ToolResults,
    /// Pictures in messages.
    Images,
    /// The model's thinking, asked for and read.
    Reasoning,
    /// Its thinking handed back, with its signature.
    ReasoningBack,
    /// Answers that fit a JSON schema.
    JsonSchema,
    /// Every reason of an ending, in one set of words.
    StopReasons,
    /// Tokens, with cached and reasoning ones where the provider counts them.
    Usage,
    /// Sources of the answer.
    Citations,
    /// Marks of what the provider should cache.
    PromptCache,
    /// Vectors of texts.
    Embeddings,
    /// The list of models.
    Models,
    /// Counting a request's tokens.
    TokenCount,
    /// Errors as one set of kinds, with the provider's own words.
    Errors,
    /// Errors in the middle of a stream, and streams that are cut.
    StreamErrors,
}

impl Feature {
    /// All of them, in the order of the documents.
    pub const ALL: &[Self] = &[
        Self::Whole,
        Self::Stream,
        Self::System,
        Self::Tools,
        Self::ToolResults,
        Self::Images,
        Self::Reasoning,
        Self::ReasoningBack,
        Self::JsonSchema,
        Self::StopReasons,
        Self::Usage,
        Self::Citations,
        Self::PromptCache,
        Self::Embeddings,
        Self::Models,
        Self::TokenCount,
        Self::Errors,
        Self::StreamErrors,
    ];

    /// Its name in `snake_case`, which is also its fixture's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Stream => "stream",
            Self::System => "system",
            Self::Tools => "tools",
            Self::ToolResults => "tool_results",
            Self::Images => "images",
            Self::Reasoning => "reasoning",
            Self::ReasoningBack => "reasoning_back",
            Self::JsonSchema => "json_schema",
            Self::StopReasons => "stop_reasons",
            Self::Usage => "usage",
            Self::Citations => "citations",
            Self::PromptCache => "prompt_cache",
            Self::Embeddings => "embeddings",
            Self::Models => "models",
            Self::TokenCount => "token_count",
            Self::Errors => "errors",
            Self::StreamErrors => "stream_errors",
        }
    }

    /// What it is, for people, as the rest of a sentence that begins with its name.
    pub fn about(self) -> &'static str {
        match self {
            Self::Whole => "an answer in one piece",
            Self::Stream => "an answer as it is made",
            Self::System => "the system prompt, placed where the provider wants it",
            Self::Tools => {
                "tools: definitions, the choice among them, several calls at once, arguments in pieces"
            }
            Self::ToolResults => "the results of tool calls",
            Self::Images => "pictures in messages",
            Self::Reasoning => "the model's thinking, asked for and read",
            Self::ReasoningBack => "its thinking handed back, with its signature",
            Self::JsonSchema => "answers that fit a JSON schema",
            Self::StopReasons => "every reason of an ending, in one set of words",
            Self::Usage => "tokens, with cached and reasoning ones where the provider counts them",
            Self::Citations => "the sources of an answer",
            Self::PromptCache => "marks of what the provider should cache",
            Self::Embeddings => "vectors of texts",
            Self::Models => "the list of models",
            Self::TokenCount => "counting a request's tokens",
            Self::Errors => "errors as one set of kinds, with the provider's own words",
            Self::StreamErrors => "errors in the middle of a stream, and streams that are cut",
        }
    }
}

/// A set of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Features(u32);

impl Features {
    /// None.
    pub const NONE: Self = Self(0);

    /// These.
    pub const fn of(features: &[Feature]) -> Self {
        let mut bits = 0;
        let mut at = 0;
        while at < features.len() {
            bits |= 1 << features[at] as u32;
            at += 1;
        }
        Self(bits)
    }

    /// These as well.
    #[must_use]
    pub const fn and(self, features: &[Feature]) -> Self {
        Self(self.0 | Self::of(features).0)
    }

    /// All but these.
    #[must_use]
    pub const fn without(self, features: &[Feature]) -> Self {
        Self(self.0 & !Self::of(features).0)
    }

    /// Whether this one is among them.
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u32) != 0
    }
}
