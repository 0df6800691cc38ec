//! The AI messages: JSON, a port of the interface that editor extensions speak (`docs/protocol.md` section 7).
//!
//! ```
//! use lapce_ai_proto::ai::{AIRequest, Message};
//! let request = AIRequest::new("openai/gpt-4o", vec![Message::user("hello")]);
//! let json = serde_json::to_string(&request).unwrap();
//! assert_eq!(json, r#"{"messages":[{"role":"user","content":"hello"}],"model":"openai/gpt-4o"}"#);
//! ```

mod answer;
mod editing;
mod models;
mod request;

pub use answer::{AIResponse, Citation, FinishReason, StreamEvent, Usage};
pub use editing::{AutocompleteRequest, FileAnalysisRequest};
pub use models::{
    EmbeddingPurpose, EmbeddingsRequest, EmbeddingsResponse, Model, ModelAlias, ModelList,
    ModelListError, ModelsRequest, TokenCount,
};
pub use request::{
    AIRequest, CacheControl, Content, Effort, ImageDetail, Message, Part, Reasoning,
    ResponseFormat, Role, Tool, ToolCall, ToolChoice,
};

#[cfg(test)]
mod tests;
