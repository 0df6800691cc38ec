//! What sets the makers' models apart, read from their names, and how they are asked to think. Converse has one field for
//! that, `outputConfig.effort`, which few models take yet; the others have fields of their makers' in
//! `additionalModelRequestFields`.
//!
//! Sources: Claude <https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-extended-thinking.html> and
//! <https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-adaptive-thinking.html>, Nova 2
//! <https://docs.aws.amazon.com/nova/latest/nova2-userguide/using-converse-api.html>, `gpt-oss`
//! <https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-openai.html>.

use serde::Serialize;

use crate::chat::{ChatRequest, ReasoningEffort, ToolChoice};
use crate::wire::anthropic::{self, Model as ClaudeModel, Plan, plan};

/// Whose model it is, as far as requests differ.
#[derive(Clone, Copy)]
pub(super) enum Model {
    Claude(ClaudeModel),
    Nova2,
    GptOss,
    /// Those that think anyway, or not at all, and those whose kind an ARN hides.
    Other,
}

/// What asks a model to think.
#[derive(Default)]
pub(super) struct Thinking {
    pub fields: Option<Fields>,
    /// Goes into `outputConfig`.
    pub effort: Option<&'static str>,
}

/// The maker's own fields.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Fields {
    Claude {
        thinking: anthropic::Thinking,
    },
    Nova {
        #[serde(rename = "reasoningConfig")]
        reasoning_config: ReasoningConfig,
    },
    Gpt {
        reasoning_effort: &'static str,
    },
}

#[derive(Serialize)]
pub(super) struct ReasoningConfig {
    r#type: &'static str,
    #[serde(rename = "maxReasoningEffort")]
    effort: &'static str,
}

impl Model {
    /// The model of this name, which may be a profile's or an ARN.
    pub(super) fn of(name: &str) -> Self {
        if name.contains("anthropic.claude") {
            Self::Claude(ClaudeModel::of(name))
        } else if name.contains("amazon.nova-2") {
            Self::Nova2
        } else if name.contains("openai.gpt-oss") {
            Self::GptOss
        } else {
            Self::Other
        }
    }

    /// What it takes of `temperature` and `topP`, given what asks it to think.
    pub(super) fn sampling(
        self,
        request: &ChatRequest,
        thinking: &Thinking,
    ) -> (Option<f64>, Option<f64>) {
        let (temperature, top_p) = (request.temperature, request.top_p);
        match self {
            Self::Claude(model) if !model.takes_sampling() || thinking.fields.is_some() => {
                (None, None)
            }
            // Several take only one of the two.
            Self::Claude(_) => (temperature, top_p.filter(|_| temperature.is_none())),
            _ => (temperature, top_p),
        }
    }

    /// Whether it holds a tool's arguments to their schema, as far as we know.
    pub(super) fn takes_strict_tools(self) -> bool {
        match self {
            Self::Claude(model) => model.takes_strict_tools(),
            _ => true,
        }
    }

    /// What asks it to think as `request` wants.
    pub(super) fn thinking(self, request: &ChatRequest) -> Thinking {
        if let Self::Claude(model) = self {
            let forced = matches!(
                request.tool_choice,
                Some(ToolChoice::Required | ToolChoice::Tool(_))
            );
            // What binds thoughts to their conversation is in no reference of Bedrock's.
            let Plan {
                thinking, effort, ..
            } = plan(model, request, forced, false);
            return Thinking {
                fields: thinking.map(|thinking| Fields::Claude { thinking }),
                effort,
            };
        }
        let effort = match request.effort() {
            None | Some(ReasoningEffort::None) => return Thinking::default(),
            Some(ReasoningEffort::Minimal | ReasoningEffort::Low) => "low",
            Some(ReasoningEffort::Medium) => "medium",
            Some(ReasoningEffort::High | ReasoningEffort::ExtraHigh) => "high",
        };
        let fields = match self {
            Self::Nova2 => Some(Fields::Nova {
                reasoning_config: ReasoningConfig {
                    r#type: "enabled",
                    effort,
                },
            }),
            Self::GptOss => Some(Fields::Gpt {
                reasoning_effort: effort,
            }),
            Self::Claude(_) | Self::Other => None,
        };
        Thinking {
            fields,
            effort: None,
        }
    }
}
