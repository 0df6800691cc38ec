//! The table itself. The order is that of preference where nobody names a provider.

use super::{Auth, Feature, Features, Format, Profile};
use crate::wire::gemini::GeminiService;
use crate::wire::openai::Dialect;
use crate::wire::responses;

/// What most rows have in common: a hosted server of chat completions that needs nothing but a key.
const HOSTED: Profile = Profile {
    name: "",
    title: "",
    format: Format::ChatCompletions(Dialect::COMPATIBLE),
    base_url: "",
    auth: Auth::Bearer,
    key_variables: &[],
    url_variable: None,
    headers: &[],
    usual_model: None,
    claims: &[],
    discovered: true,
    features: Features::NONE,
    quirks: "",
    reference: "",
};

/// What chat completions can say everywhere, as far as the provider's models can do it.
const COMMON: Features = Features::of(&[
    Feature::Whole,
    Feature::Stream,
    Feature::System,
    Feature::Tools,
    Feature::ToolResults,
    Feature::JsonSchema,
    Feature::StopReasons,
    Feature::Usage,
    Feature::Models,
    Feature::Errors,
    Feature::StreamErrors,
]);

/// Google Gemini, whichever service offers it.
const GEMINI: Profile = Profile {
    features: COMMON.and(&[
        Feature::Images,
        Feature::Reasoning,
        Feature::ReasoningBack,
        Feature::Citations,
        Feature::Embeddings,
        Feature::TokenCount,
    ]),
    reference: "https://ai.google.dev/api/generate-content",
    ..HOSTED
};
/// What Ollama's own format can say.
const OLLAMA: Features = COMMON.and(&[Feature::Images, Feature::Reasoning, Feature::ReasoningBack]);

/// What the Responses API can say everywhere.
const RESPONSES: Features = COMMON.and(&[
    Feature::Images,
    Feature::Reasoning,
    Feature::ReasoningBack,
    Feature::Citations,
]);

/// Every provider that is known by name.
pub const PROFILES: &[Profile] = &[
    Profile {
        name: "openai",
        title: "OpenAI",
        format: Format::ChatCompletions(Dialect::OPENAI),
        base_url: "https://api.openai.com/v1",
        key_variables: &["OPENAI_API_KEY"],
        url_variable: Some("OPENAI_BASE_URL"),
        usual_model: Some("gpt-4o-mini"),
        claims: &["gpt-", "chatgpt-", "o1", "o3", "o4", "text-embedding-3-"],
        features: COMMON.and(&[Feature::Images, Feature::Citations, Feature::Embeddings]),
        quirks: "thoughts are counted but not shown; for those ask `openai-responses`",
        reference: "https://platform.openai.com/docs/api-reference/chat",
        ..HOSTED
    },
    Profile {
        name: "anthropic",
        title: "Anthropic",
        format: Format::Messages,
        base_url: "https://api.anthropic.com",
        auth: Auth::Header("x-api-key"),
        key_variables: &["ANTHROPIC_API_KEY"],
        url_variable: Some("ANTHROPIC_BASE_URL"),
        headers: &[("anthropic-version", "2023-06-01")],
        usual_model: Some("claude-haiku-5-5"),
        claims: &["claude-"],
        features: COMMON.and(&[
            Feature::Images,
            Feature::Reasoning,
            Feature::ReasoningBack,
            Feature::Citations,
            Feature::PromptCache,
            Feature::TokenCount,
        ]),
        quirks: "wants a limit on tokens, so one is chosen; models since 4.7 have no temperature; JSON only by a schema",
        reference: "https://platform.claude.com/docs/en/api/messages",
        ..HOSTED
    },
    Profile {
        name: "gemini",
        title: "Google Gemini (AI Studio)",
        format: Format::Gemini(GeminiService::AiStudio),
        base_url: "https://generativelanguage.googleapis.com/v1beta",
        auth: Auth::Header("x-goog-api-key"),
        key_variables: &["GEMINI_API_KEY", "GOOGLE_API_KEY"],
        usual_model: Some("gemini-flash-latest"),
        claims: &["gemini-", "gemma-"],
        quirks: "finds out itself what to cache; cannot be told to call one tool at a time",
        ..GEMINI
    },
    Profile {
        name: "openrouter",
        title: "OpenRouter",
        format: Format::ChatCompletions(Dialect::OPENROUTER),
        base_url: "https://openrouter.ai/api/v1",
        key_variables: &["OPENROUTER_API_KEY"],
        usual_model: Some("openrouter/auto"),
        reference: "https://openrouter.ai/docs/api-reference/overview",
        features: COMMON.and(&[
            Feature::Images,
            Feature::Reasoning,
            Feature::ReasoningBack,
            Feature::Citations,
            Feature::PromptCache,
            Feature::Embeddings,
        ]),
        quirks: "caching marks reach the models that take them; thoughts come with the signatures of the model behind it",
        ..HOSTED
    },
    Profile {
        name: "groq",
        title: "Groq",
        format: Format::ChatCompletions(Dialect::WITHOUT_VECTORS),
        base_url: "https://api.groq.com/openai/v1",
        key_variables: &["GROQ_API_KEY"],
        usual_model: Some("openai/gpt-oss-20b"),
        reference: "https://console.groq.com/docs/api-reference",
        features: COMMON.and(&[Feature::Images, Feature::Reasoning]),
        ..HOSTED
    },
    Profile {
        name: "deepseek",
        title: "DeepSeek",
        format: Format::ChatCompletions(Dialect::DEEPSEEK),
        base_url: "https://api.deepseek.com",
        key_variables: &["DEEPSEEK_API_KEY"],
        usual_model: Some("deepseek-flash"),
        claims: &[
            "deepseek-flash",
            "deepseek-v4-",
            "deepseek-chat",
            "deepseek-reasoner",
        ],
        reference: "https://api-docs.deepseek.com/api/create-chat-completion",
        features: COMMON
            .and(&[Feature::Reasoning, Feature::ReasoningBack])
            .without(&[Feature::JsonSchema]),
        quirks: "JSON, but no schema: a request with one is refused; `deepseek-chat` and `deepseek-reasoner` were switched off in July 2026",
        ..HOSTED
    },
    Profile {
        name: "mistral",
        title: "Mistral",
        format: Format::ChatCompletions(Dialect::MISTRAL),
        base_url: "https://api.mistral.ai/v1",
        key_variables: &["MISTRAL_API_KEY"],
        usual_model: Some("mistral-small-latest"),
        claims: &[
            "mistral-",
            "ministral-",
            "magistral-",
            "codestral-",
            "devstral-",
            "pixtral-",
        ],
        reference: "https://docs.mistral.ai/api/",
        features: COMMON.and(&[Feature::Images, Feature::Reasoning, Feature::Embeddings]),
        quirks: "refuses fields that it does not know, so `user` and the effort are left out",
        ..HOSTED
    },
    Profile {
        name: "xai",
        title: "xAI",
        format: Format::ChatCompletions(Dialect::WITHOUT_VECTORS),
        base_url: "https://api.x.ai/v1",
        key_variables: &["XAI_API_KEY"],
        usual_model: Some("grok-4.3"),
        claims: &["grok-"],
        reference: "https://docs.x.ai/docs/api-reference",
        features: COMMON.and(&[Feature::Images, Feature::Reasoning, Feature::Citations]),
        quirks: "xAI calls this API deprecated; `xai-responses` hands thoughts back",
        ..HOSTED
    },
    Profile {
        name: "together",
        title: "Together",
        format: Format::ChatCompletions(Dialect::TOGETHER),
        base_url: "https://api.together.ai/v1",
        key_variables: &["TOGETHER_API_KEY"],
        reference: "https://docs.together.ai/reference/chat-completions-1",
        features: COMMON.and(&[Feature::Images, Feature::Reasoning, Feature::Embeddings]),
        ..HOSTED
    },
    Profile {
        name: "fireworks",
        title: "Fireworks",
        format: Format::ChatCompletions(Dialect::FIREWORKS),
        base_url: "https://api.fireworks.ai/inference/v1",
        key_variables: &["FIREWORKS_API_KEY"],
        claims: &["accounts/fireworks/"],
        reference: "https://docs.fireworks.ai/api-reference/post-chatcompletions",
        features: COMMON.and(&[
            Feature::Images,
            Feature::Reasoning,
            Feature::ReasoningBack,
            Feature::Embeddings,
        ]),
        ..HOSTED
    },
    Profile {
        name: "perplexity",
        title: "Perplexity",
        format: Format::ChatCompletions(Dialect::PERPLEXITY),
        base_url: "https://api.perplexity.ai",
        key_variables: &["PERPLEXITY_API_KEY"],
        usual_model: Some("sonar"),
        claims: &["sonar"],
        features: COMMON
            .and(&[Feature::Images, Feature::Citations])
            .without(&[Feature::Tools, Feature::ToolResults, Feature::Models]),
        quirks: "searches the web for every answer; no tools, no stop texts, no list of models",
        reference: "https://docs.perplexity.ai/api-reference/chat-completions-post",
        ..HOSTED
    },
    Profile {
        name: "vertex",
        title: "Google Vertex AI",
        format: Format::Gemini(GeminiService::Vertex),
        base_url: "https://{region}-aiplatform.googleapis.com/v1/projects/{project}/locations/{region}",
        key_variables: &["GOOGLE_OAUTH_ACCESS_TOKEN", "CLOUDSDK_AUTH_ACCESS_TOKEN"],
        usual_model: Some("gemini-3.8-flash"),
        claims: &["gemini-"],
        discovered: false,
        quirks: "needs `project`; without `region` it is `global`; its key is an OAuth access token, which lives for an hour",
        reference: "https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference",
        ..GEMINI
    },
    Profile {
        name: "bedrock",
        title: "AWS Bedrock",
        format: Format::Bedrock,
        base_url: "https://bedrock-runtime.{region}.amazonaws.com",
        auth: Auth::AwsSigV4,
        key_variables: &["AWS_BEARER_TOKEN_BEDROCK"],
        features: COMMON.and(&[
            Feature::Images,
            Feature::Reasoning,
            Feature::ReasoningBack,
            Feature::Citations,
            Feature::PromptCache,
            Feature::Embeddings,
            Feature::TokenCount,
        ]),
        quirks: "needs a region; a Bedrock API key, or the keys of an AWS account from the environment, a profile or the container; images as bytes only",
        reference: "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html",
        ..HOSTED
    },
    Profile {
        name: "cohere",
        title: "Cohere",
        format: Format::Cohere,
        base_url: "https://api.cohere.com",
        key_variables: &["CO_API_KEY", "COHERE_API_KEY"],
        usual_model: Some("command-a-03-2025"),
        claims: &[
            "command-",
            "c4ai-",
            "embed-v4",
            "embed-english-",
            "embed-multilingual-",
        ],
        features: COMMON.and(&[
            Feature::Images,
            Feature::Reasoning,
            Feature::ReasoningBack,
            Feature::Citations,
            Feature::Embeddings,
        ]),
        quirks: "system messages all go to the front; a certain tool is forced by offering no other; JSON or tools, not both; its count of tokens leaves out the chat's template, so there is none here",
        reference: "https://docs.cohere.com/v2/reference/chat",
        ..HOSTED
    },
    Profile {
        name: "ollama",
        title: "Ollama",
        format: Format::Ollama,
        base_url: "http://127.0.0.1:11434",
        url_variable: Some("OLLAMA_HOST"),
        discovered: false,
        features: OLLAMA.and(&[Feature::Embeddings]),
        quirks: "found where it listens on this machine; pictures must be in the request; no call can be forced; it cuts what is too long for its context without a word",
        reference: "https://docs.ollama.com/api/chat",
        ..HOSTED
    },
    Profile {
        name: "ollama-cloud",
        title: "Ollama's cloud",
        format: Format::Ollama,
        base_url: "https://ollama.com",
        key_variables: &["OLLAMA_API_KEY"],
        usual_model: Some("gpt-oss:120b"),
        features: OLLAMA,
        quirks: "as `ollama`",
        reference: "https://docs.ollama.com/cloud",
        ..HOSTED
    },
    Profile {
        name: "openai-responses",
        title: "OpenAI (Responses)",
        format: Format::Responses(responses::Dialect::OPENAI),
        base_url: "https://api.openai.com/v1",
        key_variables: &["OPENAI_API_KEY"],
        usual_model: Some("gpt-4o-mini"),
        // Those that chat completions refuses, as the official SDK lists them (`openai` 3.57, `ResponsesModel`).
        claims: &[
            "o1-pro",
            "o3-pro",
            "o3-deep-research",
            "o4-mini-deep-research",
            "computer-use-preview",
            "gpt-5-codex",
            "gpt-5-pro",
            "gpt-5.1-codex-max",
            "gpt-5.5-pro",
            "gpt-5.6-cyber",
            "gpt-6-cyber",
            "gpt-6-rosalind",
            "gpt-6.2-astra-law",
            "gpt-daybreak-",
            "gpt-rosalind-",
        ],
        discovered: false,
        features: RESPONSES.and(&[Feature::TokenCount]),
        quirks: "nothing is kept there (`store` is false): thoughts come back encrypted and are handed back so; no stop texts, no seed",
        reference: "https://platform.openai.com/docs/api-reference/responses",
        ..HOSTED
    },
    Profile {
        name: "azure",
        title: "Azure OpenAI",
        format: Format::ChatCompletions(Dialect::AZURE),
        auth: Auth::HeaderOrToken("api-key"),
        key_variables: &["AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"],
        url_variable: Some("AZURE_OPENAI_ENDPOINT"),
        features: COMMON.and(&[Feature::Images, Feature::Reasoning, Feature::Embeddings]),
        quirks: "`base_url` is the resource's, a model is the name of its deployment; the key may be a token of Microsoft Entra; `api_version` only for the API before v1",
        reference: "https://learn.microsoft.com/en-us/azure/foundry/openai/latest",
        ..HOSTED
    },
    Profile {
        name: "azure-responses",
        title: "Azure OpenAI (Responses)",
        format: Format::Responses(responses::Dialect::AZURE),
        auth: Auth::HeaderOrToken("api-key"),
        key_variables: &["AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"],
        url_variable: Some("AZURE_OPENAI_ENDPOINT"),
        discovered: false,
        features: RESPONSES,
        quirks: "as `azure`",
        reference: "https://learn.microsoft.com/en-us/azure/foundry/openai/how-to/responses",
        ..HOSTED
    },
    Profile {
        name: "xai-responses",
        title: "xAI (Responses)",
        format: Format::Responses(responses::Dialect::XAI),
        base_url: "https://api.x.ai/v1",
        key_variables: &["XAI_API_KEY"],
        usual_model: Some("grok-4.3"),
        discovered: false,
        features: RESPONSES,
        quirks: "xAI's preferred API: the only one that hands thoughts back",
        reference: "https://docs.x.ai/docs/guides/chat",
        ..HOSTED
    },
    Profile {
        name: "openrouter-responses",
        title: "OpenRouter (Responses)",
        format: Format::Responses(responses::Dialect::OPENROUTER),
        base_url: "https://openrouter.ai/api/v1",
        key_variables: &["OPENROUTER_API_KEY"],
        usual_model: Some("openrouter/auto"),
        discovered: false,
        features: RESPONSES,
        quirks: "keeps nothing itself",
        reference: "https://openrouter.ai/docs/api-reference/responses/overview",
        ..HOSTED
    },
    Profile {
        name: "compatible-responses",
        title: "Any server of the Responses API",
        format: Format::Responses(responses::Dialect::OPEN),
        discovered: false,
        features: RESPONSES.without(&[Feature::Citations]),
        quirks: "needs `base_url`; thoughts of open models are handed back in plain text",
        reference: "https://www.openresponses.org/specification",
        ..HOSTED
    },
    Profile {
        name: "compatible",
        title: "Any OpenAI-compatible server",
        discovered: false,
        reference: "https://platform.openai.com/docs/api-reference/chat",
        quirks: "needs `base_url`; a key only where the server wants one",
        features: COMMON.and(&[Feature::Images, Feature::Reasoning, Feature::Embeddings]),
        ..HOSTED
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_rows_are_whole() {
        for (at, profile) in PROFILES.iter().enumerate() {
            let name = profile.name;
            assert!(
                PROFILES[..at].iter().all(|other| other.name != name),
                "{name}"
            );
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'-'),
                "{name}"
            );
            assert!(!profile.title.is_empty(), "{name}");
            assert!(profile.reference.starts_with("https://"), "{name}");
            assert!(
                !profile.discovered || !profile.key_variables.is_empty(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_claim_is_one_providers() {
        for profile in PROFILES.iter().filter(|profile| profile.discovered) {
            for claim in profile.claims {
                let others = PROFILES.iter().filter(|other| {
                    other.discovered && other.name != profile.name && other.claims(claim)
                });
                assert_eq!(others.count(), 0, "{claim}");
            }
        }
    }
}
