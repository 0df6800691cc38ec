//! Wire types here, domain types there: the one place where they meet.

mod answer;
mod editing;
mod error;
mod estimate;
mod other;
mod request;

pub(super) use answer::{response, usage, write_finish, write_item};
pub(super) use editing::{autocomplete, file_analysis};
pub(super) use error::{catalog_error, provider_error, without_finish};
pub(super) use estimate::estimated_tokens;
pub(super) use other::{embedding_request, embeddings, model};
pub(super) use request::{chat_request, parse};
