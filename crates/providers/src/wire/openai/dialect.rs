//! Where servers that speak OpenAI chat completions differ: one row each.

/// How one server's dialect differs from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Whether the limit on tokens is called `max_completion_tokens`. OpenAI's reasoning models refuse the older
    /// `max_tokens`; most other servers know only that.
    pub max_completion_tokens: bool,
    /// Whether usage must be asked for by `stream_options.include_usage`. The others send it unasked, and may refuse
    /// the field.
    pub stream_options: bool,
    /// Whether `reasoning_effort` is known.
    pub reasoning_effort: bool,
    /// Whether `user` is known.
    pub user: bool,
    /// The name of the sampling seed.
    pub seed: &'static str,
    /// The `tool_choice` that means "some tool".
    pub required_tool: &'static str,
    /// Whether `strict` is known in tools.
    pub strict_tools: bool,
    /// Whether the thoughts of earlier turns are handed back as `reasoning_content`. DeepSeek wants that where
    /// tools are called; several other servers answer 400 to it.
    pub reasoning_content: bool,
}

impl Dialect {
    /// OpenAI itself.
    pub const OPENAI: Self = Self {
        max_completion_tokens: true,
        stream_options: true,
        reasoning_effort: true,
        user: true,
        seed: "seed",
        required_tool: "required",
        strict_tools: true,
        reasoning_content: false,
    };

    /// Any other server: llama.cpp, Ollama, vLLM, LM Studio, and most of the hosted ones.
    pub const COMPATIBLE: Self = Self {
        max_completion_tokens: false,
        ..Self::OPENAI
    };

    /// DeepSeek.
    pub const DEEPSEEK: Self = Self {
        reasoning_content: true,
        ..Self::COMPATIBLE
    };

    /// Mistral, which answers 422 `extra_forbidden` to fields that it does not know.
    pub const MISTRAL: Self = Self {
        max_completion_tokens: false,
        stream_options: false,
        reasoning_effort: false,
        user: false,
        seed: "random_seed",
        required_tool: "any",
        strict_tools: true,
        reasoning_content: false,
    };
}
