//! JSON read without allocation: texts, arrays, and what is to be skipped.

mod array;
mod fill;
mod string;

pub(crate) use array::{Few, Skip, for_each};
pub(crate) use fill::{Fill, FirstObject, Object, Objects, fill, skip};
pub(crate) use string::{cow, string};
