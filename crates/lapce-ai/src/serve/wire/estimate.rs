//! The size of a request, where nobody counts it.

use lapce_ai_proto::ai::{AIRequest, Content, Part, Tool};
use serde_json::Value;

/// Bytes of text that make a token, roughly and in most languages.
const BYTES_PER_TOKEN: u64 = 4;
/// Tokens that a message costs besides its text.
const TOKENS_PER_MESSAGE: u64 = 4;
/// Tokens of a picture, roughly: providers count from 85 to 1,500.
const TOKENS_PER_IMAGE: u64 = 765;

/// The size of a request, from the length of its texts.
pub(in crate::serve) fn estimated_tokens(request: &AIRequest) -> u64 {
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
                    Part::Text { text, .. } | Part::Reasoning { text, .. } => of(text),
                    Part::RedactedReasoning { data } => of(data),
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
    let tool = |tool: &Tool| {
        of(&tool.name) + tool.description.as_deref().map_or(0, of) + json(&tool.parameters)
    };
    tokens + tools.map(tool).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use lapce_ai_proto::ai::Message;

    use super::*;

    #[test]
    fn four_bytes_are_a_token_and_a_message_costs_four() {
        let request = AIRequest::new("", vec![Message::user("12345678")]);
        assert_eq!(estimated_tokens(&request), 6);
    }
}
