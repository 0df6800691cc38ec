//! Where servers that speak OpenAI chat completions differ: one row each.

use super::embeddings::Vectors;
use super::server::Paths;

/// How one server's dialect differs from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// How the paths of its operations are made.
    pub paths: Paths,
    /// What the limit on tokens is called. OpenAI's reasoning models refuse `max_tokens`; most other servers know only
    /// that.
    pub max_tokens: &'static str,
    /// Whether usage must be asked for by `stream_options.include_usage`. The others send it unasked, and may refuse
    /// the field.
    pub stream_options: bool,
    /// How it is said how hard to think.
    pub effort: Effort,
    /// Whether `user` is known.
    pub user: bool,
    /// Whether `stop` is known.
    pub stop: bool,
    /// The name of the sampling seed, where there is one.
    pub seed: Option<&'static str>,
    /// Whether there are tools.
    pub tools: bool,
    /// The `tool_choice` that means "some tool".
    pub required_tool: &'static str,
    /// Whether `strict` is known in tools.
    pub strict_tools: bool,
    /// Whether answers can be held to a JSON schema. Those without refuse it or, worse, ignore it.
    pub json_schema: bool,
    /// How the thoughts of earlier turns are handed back.
    pub thoughts: Thoughts,
    /// Whether `cache_control` marks what to cache.
    pub cache_control: bool,
    /// How vectors of texts are made, where they are.
    pub vectors: Option<Vectors>,
}

/// How it is said how hard to think.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// `reasoning_effort`, a word.
    Word,
    /// The same, and `thinking` to have none at all (DeepSeek).
    WordOrOff,
    /// `reasoning`, an object with an effort or a number of tokens (OpenRouter).
    Object,
    /// Not at all.
    Unknown,
}

/// How the thoughts of earlier turns are handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thoughts {
    /// As `reasoning_content`. DeepSeek wants that where tools are called; several other servers answer 400 to it.
    Content,
    /// As `reasoning_details`, with signatures and what is encrypted (OpenRouter).
    Details,
    /// Not at all.
    Dropped,
}

impl Dialect {
    /// OpenAI itself.
    pub const OPENAI: Self = Self {
        paths: Paths::Plain,
        max_tokens: "max_completion_tokens",
        stream_options: true,
        effort: Effort::Word,
        user: true,
        stop: true,
        seed: Some("seed"),
        tools: true,
        required_tool: "required",
        strict_tools: true,
        json_schema: true,
        thoughts: Thoughts::Dropped,
        cache_control: false,
        vectors: Some(Vectors::OPENAI),
    };

    /// Azure, which has OpenAI's models and others.
    pub const AZURE: Self = Self {
        paths: Paths::Azure,
        ..Self::OPENAI
    };

    /// Any other server: llama.cpp, Ollama, vLLM, LM Studio, and most of the hosted ones.
    pub const COMPATIBLE: Self = Self {
        max_tokens: "max_tokens",
        vectors: Some(Vectors::COMPATIBLE),
        ..Self::OPENAI
    };

    /// Those of them that make no vectors.
    pub const WITHOUT_VECTORS: Self = Self {
        vectors: None,
        ..Self::COMPATIBLE
    };

    /// Together.
    pub const TOGETHER: Self = Self {
        vectors: Some(Vectors::TOGETHER),
        ..Self::COMPATIBLE
    };

    /// DeepSeek.
    pub const DEEPSEEK: Self = Self {
        effort: Effort::WordOrOff,
        json_schema: false,
        thoughts: Thoughts::Content,
        ..Self::WITHOUT_VECTORS
    };

    /// Fireworks.
    pub const FIREWORKS: Self = Self {
        thoughts: Thoughts::Content,
        ..Self::COMPATIBLE
    };

    /// Mistral, which answers 422 `extra_forbidden` to fields that it does not know.
    pub const MISTRAL: Self = Self {
        stream_options: false,
        effort: Effort::Unknown,
        user: false,
        seed: Some("random_seed"),
        required_tool: "any",
        vectors: Some(Vectors::MISTRAL),
        ..Self::COMPATIBLE
    };

    /// OpenRouter, which passes on what the models behind it want.
    pub const OPENROUTER: Self = Self {
        effort: Effort::Object,
        thoughts: Thoughts::Details,
        cache_control: true,
        vectors: Some(Vectors::OPENAI),
        ..Self::COMPATIBLE
    };

    /// Perplexity, which searches instead of calling tools.
    pub const PERPLEXITY: Self = Self {
        stream_options: false,
        user: false,
        stop: false,
        seed: None,
        tools: false,
        ..Self::WITHOUT_VECTORS
    };
}
