//! Objects read into what is there already. serde's derive builds each object and moves it into the one around it, which
//! for the chunks of a stream costs more than reading them.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Error as JsonError;

use super::{Few, Skip};

/// What an object is read into, a field at a time.
pub(crate) trait Fill<'de> {
    /// An object begins.
    fn begin(&mut self) {}

    /// Takes the value of the field `name` out of `map`, or [skips](skip) it.
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

/// Passes over a value, without the stack that serde's `IgnoredAny` allocates for nested ones.
pub(crate) fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<Skip>().map(|_| ())
}

/// Reads the JSON object `text` into `target`.
pub(crate) fn fill<'de>(text: &'de str, target: &mut impl Fill<'de>) -> Result<(), JsonError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Object(target, false).deserialize(&mut deserializer)?;
    deserializer.end()
}

/// An object; null is none.
pub(crate) struct Object<'a, T>(pub(crate) &'a mut T, bool);

impl<'a, T> Object<'a, T> {
    /// A field that may be null.
    pub(crate) fn or_null(target: &'a mut T) -> Self {
        Self(target, true)
    }
}

impl<'de, T: Fill<'de>> DeserializeSeed<'de> for Object<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Fill<'de>> Visitor<'de> for Object<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        match self.1 {
            true => Ok(()),
            false => Err(E::invalid_type(serde::de::Unexpected::Unit, &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.0.begin();
        while let Some(Name(name)) = map.next_key()? {
            self.0.field(&name, &mut map)?;
        }
        Ok(())
    }
}

/// The first object of an array, the others are skipped; null is none.
pub(crate) struct FirstObject<'a, T>(pub(crate) &'a mut T);

impl<'de, T: Fill<'de>> DeserializeSeed<'de> for FirstObject<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Fill<'de>> Visitor<'de> for FirstObject<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if seq.next_element_seed(Object(self.0, false))?.is_some() {
            while seq.next_element::<Skip>()?.is_some() {}
        }
        Ok(())
    }
}

/// All objects of an array, or one without its array (see [`Few`]); null is none.
pub(crate) struct Objects<'a, T>(pub(crate) &'a mut Few<T>);

impl<'de, T: Fill<'de> + Default> DeserializeSeed<'de> for Objects<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Fill<'de> + Default> Visitor<'de> for Objects<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects or its only one")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Object(self.0.grow(), false).visit_map(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Next(self.0))?.is_some() {}
        Ok(())
    }
}

/// An object of an array: it has a place only once it is there.
struct Next<'a, T>(&'a mut Few<T>);

impl<'de, T: Fill<'de> + Default> DeserializeSeed<'de> for Next<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        Object(self.0.grow(), false).deserialize(deserializer)
    }
}

/// A field's name, borrowed unless it has escapes.
struct Name<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field's name")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(Visit)
    }
}
