//! Vectors of texts: what is asked for, and what comes back.

/// Texts to be turned into vectors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmbeddingRequest {
    /// The model, by the name that the provider itself uses.
    pub model: String,
    /// The texts.
    pub input: Vec<String>,
    /// The length of each vector; `None` is the model's own. Left out where the provider has no such setting.
    pub dimensions: Option<u32>,
    /// What the vectors are for. Left out where the provider makes no difference.
    pub purpose: EmbeddingPurpose,
}

/// What vectors are for: some models make other ones for a question than for the documents that are searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EmbeddingPurpose {
    /// Documents that will be searched.
    #[default]
    Document,
    /// The question that they are searched with.
    Query,
}

/// The vectors, in the order of the texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embeddings {
    /// The model that made them, where the provider says so.
    pub model: Option<String>,
    /// One vector for each text.
    pub vectors: Vec<Vec<f32>>,
    /// The tokens of all texts, where the provider counts them.
    pub input_tokens: Option<u64>,
}
