//! JSON read without allocation: texts, arrays, and what is to be skipped.

mod array;
mod string;

pub(crate) use array::{Few, First, Skip, for_each};
pub(crate) use string::{cow, string};
