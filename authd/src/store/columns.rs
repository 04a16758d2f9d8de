//! How values of other crates lie in columns.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value whose serde form is a string, as text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<T>(pub(super) T);

impl<T: Serialize> ToSql for Text<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match serde_json::to_value(&self.0) {
            Ok(serde_json::Value::String(text)) => Ok(text.into()),
            Ok(serde_json::Value::Null) => Ok(rusqlite::types::Null.into()),
            Ok(_) => Err(rusqlite::Error::ToSqlConversionFailure("not a string".into())),
            Err(error) => Err(rusqlite::Error::ToSqlConversionFailure(error.into())),
        }
    }
}

impl<T: DeserializeOwned> FromSql for Text<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let json = match value {
            ValueRef::Null => serde_json::Value::Null,
            _ => serde_json::Value::String(value.as_str()?.to_owned()),
        };
        serde_json::from_value(json).map(Self).map_err(|error| FromSqlError::Other(error.into()))
    }
}
