//! What a request needs a provider to be able to do.

use crate::chat::{ChatRequest, Content, ResponseFormat};
use crate::profile::{Feature, Features};

/// The first thing that `request` needs and `features` lacks.
pub(super) fn lacking(request: &ChatRequest, features: Features) -> Option<Feature> {
    let contents = || request.messages.iter().flat_map(|message| &message.content);
    let has_image = || contents().any(|content| matches!(content, Content::Image(_)));
    let calls_tools = || {
        request
            .messages
            .iter()
            .any(|message| !message.tool_calls.is_empty())
    };
    let wants_schema = matches!(
        request.response_format,
        Some(ResponseFormat::JsonSchema { .. })
    );
    let needs = [
        (Feature::Tools, !request.tools.is_empty() || calls_tools()),
        (Feature::Images, has_image()),
        (Feature::JsonSchema, wants_schema),
    ];
    needs
        .into_iter()
        .find(|(feature, needed)| *needed && !features.has(*feature))
        .map(|(feature, _)| feature)
}
