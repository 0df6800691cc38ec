//! How to answer: tools, and the settings of the generation.
//!
//! Source: <https://ai.google.dev/api/generate-content#v1beta.GenerationConfig>,
//! <https://ai.google.dev/gemini-api/docs/function-calling>, <https://ai.google.dev/gemini-api/docs/thinking>.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::chat::{ChatRequest, ReasoningEffort, ResponseFormat, Tool, ToolChoice};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tools<'a> {
    function_declarations: Vec<Declaration<'a>>,
}

/// `parametersJsonSchema` takes JSON Schema as it is. `parameters` takes an excerpt of `OpenAPI`'s dialect, where types are in
/// capitals and `$ref`, `const` and `additionalProperties` do not exist, so that a schema would have to be rewritten and
/// lose some of its meaning.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Declaration<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters_json_schema: Option<&'a RawValue>,
}

impl<'a> Tools<'a> {
    pub(super) fn new(tools: &'a [Tool]) -> Self {
        let declare = |tool: &'a Tool| Declaration {
            name: &tool.name,
            description: tool.description.as_deref(),
            parameters_json_schema: tool.parameters.as_deref(),
        };
        Self {
            function_declarations: tools.iter().map(declare).collect(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ToolConfig<'a> {
    function_calling_config: CallingConfig<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CallingConfig<'a> {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_function_names: Option<[&'a str; 1]>,
}

impl<'a> ToolConfig<'a> {
    pub(super) fn new(choice: &'a ToolChoice) -> Self {
        let (mode, allowed_function_names) = match choice {
            ToolChoice::Auto => ("AUTO", None),
            ToolChoice::None => ("NONE", None),
            ToolChoice::Required => ("ANY", None),
            ToolChoice::Tool(name) => ("ANY", Some([name.as_str()])),
        };
        Self {
            function_calling_config: CallingConfig {
                mode,
                allowed_function_names,
            },
        }
    }
}

/// Has no word for the end user, labels without conditions, or whether several tools may be called at once: those are
/// left out.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GenerationConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop_sequences: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_mime_type: Option<&'static str>,
    /// JSON Schema as it is, unlike `responseSchema`: see [`Declaration`].
    #[serde(skip_serializing_if = "Option::is_none")]
    response_json_schema: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking_config: Option<ThinkingConfig>,
}

impl<'a> GenerationConfig<'a> {
    /// `None`: nothing is set.
    pub(super) fn new(request: &'a ChatRequest) -> Option<Self> {
        let (response_mime_type, response_json_schema) = match &request.response_format {
            None => (None, None),
            Some(ResponseFormat::JsonObject) => (Some("application/json"), None),
            Some(ResponseFormat::JsonSchema { schema, .. }) => {
                (Some("application/json"), Some(&**schema))
            }
        };
        let config = Self {
            temperature: request.temperature,
            top_p: request.top_p,
            max_output_tokens: request.max_tokens,
            stop_sequences: &request.stop,
            seed: request.seed.map(seed),
            response_mime_type,
            response_json_schema,
            thinking_config: ThinkingConfig::new(request),
        };
        let set = config.temperature.is_some()
            || config.top_p.is_some()
            || config.max_output_tokens.is_some()
            || !config.stop_sequences.is_empty()
            || config.seed.is_some()
            || config.response_mime_type.is_some()
            || config.thinking_config.is_some();
        set.then_some(config)
    }
}

/// Gemini's seeds have 32 bits. The same one stays the same one.
fn seed(seed: i64) -> i32 {
    i32::try_from(seed).unwrap_or_else(|_| {
        let [low, high] = [seed, seed >> 32].map(|half| half & 0xFFFF_FFFF);
        i32::try_from((low ^ high) & 0x7FFF_FFFF).unwrap_or_default()
    })
}

/// A level or a budget, never both: that is refused.
#[derive(Serialize, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct ThinkingConfig {
    include_thoughts: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking_level: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking_budget: Option<u32>,
}

impl ThinkingConfig {
    /// `None`: nothing was asked for, or the model cannot think and refuses to be asked to.
    pub(super) fn new(request: &ChatRequest) -> Option<Self> {
        let effort = request.effort()?;
        let include_thoughts = effort != ReasoningEffort::None;
        if takes_levels(&request.model) {
            return Some(Self {
                include_thoughts,
                thinking_level: Some(level(effort, &request.model)),
                thinking_budget: None,
            });
        }
        let (least, most) = budgets(&request.model)?;
        let wanted = request.budget()?;
        // 0 is no thinking at all, which not every model allows.
        let budget = match (wanted, least) {
            (0, 512) => 0,
            _ => wanted.clamp(least, most),
        };
        Some(Self {
            include_thoughts,
            thinking_level: None,
            thinking_budget: Some(budget),
        })
    }
}

/// Whether `model` is Gemini 3 or later. Those think by levels, and insist on the signatures of their calls. Names without a
/// number are aliases of the latest, such as `gemini-flash-latest`, or newer families.
pub(super) fn takes_levels(model: &str) -> bool {
    let name = model.rsplit('/').next().unwrap_or(model);
    let Some(rest) = name.strip_prefix("gemini-") else {
        return false;
    };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let generation = rest[..digits].parse::<u32>();
    generation.is_ok_and(|generation| generation >= 3) || digits == 0
}

/// No model of these can be kept from thinking. Few know `MINIMAL`; the others refuse it.
fn level(effort: ReasoningEffort, model: &str) -> &'static str {
    let minimal = ["gemini-3-flash", "gemini-3.1-flash-lite"];
    match effort {
        ReasoningEffort::None | ReasoningEffort::Minimal
            if minimal.iter().any(|name| model.contains(name)) =>
        {
            "MINIMAL"
        }
        ReasoningEffort::None | ReasoningEffort::Minimal | ReasoningEffort::Low => "LOW",
        ReasoningEffort::Medium => "MEDIUM",
        ReasoningEffort::High | ReasoningEffort::ExtraHigh => "HIGH",
    }
}

/// The least and the most tokens of thinking.
/// Source: <https://ai.google.dev/gemini-api/docs/thinking#set-budget>.
fn budgets(model: &str) -> Option<(u32, u32)> {
    let name = model.rsplit('/').next().unwrap_or(model);
    let name = name.strip_prefix("gemini-2.5-")?;
    Some(if name.starts_with("pro") {
        (128, 32_768)
    } else if name.starts_with("flash-lite") {
        (512, 24_576)
    } else {
        (0, 24_576)
    })
}
