//! What a request will take, before anybody counted: from the length of its texts.

use crate::chat::{ChatRequest, Content, Message, ResponseFormat};
use crate::embeddings::EmbeddingRequest;
use crate::event::Usage;

/// Bytes of text that make a token, roughly and in most languages.
const BYTES_PER_TOKEN: u64 = 4;
/// Tokens that a message costs besides its text.
const PER_MESSAGE: u64 = 4;
/// Tokens of a picture, roughly: providers count from 85 to 1,500.
const PER_IMAGE: u64 = 765;
/// The answer of a request that says nothing of its length.
const USUAL_ANSWER: u64 = 1024;

/// The tokens of a text of so many bytes.
pub(super) fn tokens(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

/// The tokens of the request, and the most of its answer: as many as it allows, or a thousand or so.
pub(super) fn usage(request: &ChatRequest) -> Usage {
    Usage {
        input_tokens: input(request),
        output_tokens: request.max_tokens.map_or(USUAL_ANSWER, u64::from),
        ..Usage::default()
    }
}

/// The tokens of texts that vectors are made of. Vectors have none.
pub(super) fn of_texts(request: &EmbeddingRequest) -> Usage {
    let texts = request.input.iter();
    Usage {
        input_tokens: texts.map(|text| tokens(text.len() as u64)).sum(),
        ..Usage::default()
    }
}

fn input(request: &ChatRequest) -> u64 {
    let of = |text: &str| tokens(text.len() as u64);
    let system = request.system.as_deref().map(of);
    let tools = request.tools.iter().map(|tool| {
        let schema = tool
            .parameters
            .as_deref()
            .map_or(0, |schema| of(schema.get()));
        of(&tool.name) + tool.description.as_deref().map_or(0, of) + schema
    });
    let format = match &request.response_format {
        Some(ResponseFormat::JsonSchema { schema, .. }) => of(schema.get()),
        _ => 0,
    };
    let message = |message: &Message| {
        let content = message.content.iter().map(|content| match content {
            Content::Text(text) | Content::RedactedReasoning(text) => of(text),
            Content::Reasoning { text, .. } => of(text),
            Content::Image(_) => PER_IMAGE,
            Content::CachePoint => 0,
        });
        let calls = message.tool_calls.iter();
        let calls = calls.map(|call| of(&call.name) + of(&call.arguments));
        PER_MESSAGE + content.chain(calls).sum::<u64>()
    };
    let messages = request.messages.iter().map(message);
    system.into_iter().chain(tools).chain(messages).sum::<u64>() + format
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_sent_counts() {
        let request = ChatRequest {
            system: Some("12345678".into()),
            max_tokens: Some(9),
            ..ChatRequest::new("m").with(Message::user("1234567"))
        };
        let Usage {
            input_tokens,
            output_tokens,
            ..
        } = usage(&request);
        assert_eq!((input_tokens, output_tokens), (2 + 4 + 2, 9));
        let unbounded = ChatRequest::new("m");
        assert_eq!(usage(&unbounded).output_tokens, USUAL_ANSWER);
    }
}
