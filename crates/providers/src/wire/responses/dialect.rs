//! Where servers of the Responses API differ: one row each.

use crate::wire::openai::server::Paths;

/// How one server's Responses API differs from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// How the paths of its operations are made.
    pub paths: Paths,
    /// Whether the encrypted thoughts are asked for in every request. OpenAI sends them unasked, and its models that
    /// do not think refuse to be asked; so there, only whoever names an effort asks.
    pub always_encrypted: bool,
    /// Whether readable thoughts must be asked for. The others send them unasked.
    pub summary: bool,
    /// The name of the end user's identifier.
    pub user: &'static str,
    /// Whether `metadata` is kept.
    pub metadata: bool,
    /// Whether thoughts that nobody signed are handed back, as open models want it.
    pub plain_thoughts: bool,
    /// Whether tokens can be counted at `/responses/input_tokens`.
    pub counts: bool,
}

impl Dialect {
    /// OpenAI itself.
    pub const OPENAI: Self = Self {
        paths: Paths::Plain,
        always_encrypted: false,
        summary: true,
        user: "safety_identifier",
        metadata: true,
        plain_thoughts: false,
        counts: true,
    };

    /// Azure, which has OpenAI's models.
    pub const AZURE: Self = Self {
        paths: Paths::Azure,
        user: "user",
        counts: false,
        ..Self::OPENAI
    };

    /// Any other server that follows <https://www.openresponses.org>: LM Studio, vLLM, Ollama.
    pub const OPEN: Self = Self {
        plain_thoughts: true,
        counts: false,
        ..Self::OPENAI
    };

    /// OpenRouter.
    pub const OPENROUTER: Self = Self {
        user: "user",
        counts: false,
        ..Self::OPENAI
    };

    /// xAI, whose models all think. It takes `metadata` and ignores it.
    pub const XAI: Self = Self {
        always_encrypted: true,
        summary: false,
        user: "user",
        metadata: false,
        counts: false,
        ..Self::OPENAI
    };
}
