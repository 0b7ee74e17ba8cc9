//! The shape of a configuration: what the JSON Schema of its type says about keys, choices and values.
//!
//! It understands what `schemars` writes for the types of configurations: structs, maps, enums, numbers,
//! strings, lists and optional values, and nothing else of JSON Schema.

use serde_json::Value;
use toml::de::DeValue;

/// A part of a schema.
#[derive(Clone, Copy)]
pub(crate) struct Shape<'s> {
    root: &'s Value,
    node: &'s Value,
}

impl<'s> Shape<'s> {
    pub(crate) fn of_schema(root: &'s Value) -> Self {
        Self { root, node: root }
    }

    /// Returns the shape that `node` describes, with references followed and options unwrapped.
    fn at(self, node: &'s Value) -> Self {
        if let Some(pointer) = node["$ref"].as_str() {
            let named = self.root.pointer(pointer.trim_start_matches('#'));
            return named.map_or(Self { node, ..self }, |named| self.at(named));
        }
        let present = |one: &&Value| one["type"] != "null";
        match node["anyOf"].as_array().and_then(|any| any.iter().find(present)) {
            Some(one) => self.at(one),
            None => Self { node, ..self },
        }
    }

    /// Returns the shape of the value at a key of this table, if the table may have that key.
    pub(crate) fn field(self, name: &str) -> Option<Self> {
        let any_key = &self.node["additionalProperties"];
        let named = self.node["properties"].get(name);
        let takes_any = any_key.is_object() || *any_key == Value::Bool(true);
        named.or(Some(any_key).filter(|_| takes_any)).map(|node| self.at(node))
    }

    /// Returns the keys that this table may have.
    pub(crate) fn keys(self) -> impl Iterator<Item = &'s str> {
        self.node["properties"]
            .as_object()
            .into_iter()
            .flat_map(|fields| fields.keys())
            .map(|k| &**k)
    }

    pub(crate) fn required(self) -> impl Iterator<Item = &'s str> {
        self.node["required"].as_array().into_iter().flatten().filter_map(Value::as_str)
    }

    /// Returns the names of the choices, each with the shape of what belongs to it.
    pub(crate) fn choices(self) -> Vec<(&'s str, Option<Self>)> {
        let names = |variant: &'s Value| {
            let listed = variant["enum"].as_array().into_iter().flatten();
            listed.chain(variant.get("const")).filter_map(Value::as_str).map(|name| (name, None))
        };
        let with_value = |variant: &'s Value| {
            let fields = variant["properties"].as_object().into_iter().flatten();
            fields.map(move |(name, value)| (name.as_str(), Some(self.at(value))))
        };
        match self.node["oneOf"].as_array() {
            None => names(self.node).collect(),
            Some(variants) => variants.iter().flat_map(|v| names(v).chain(with_value(v))).collect(),
        }
    }

    /// Returns the dotted paths of all keys below this table that hold no table themselves.
    pub(crate) fn paths(self) -> Vec<String> {
        let below = |name: &'s str| {
            let field = self.field(name).map(Self::paths).unwrap_or_default();
            match field.is_empty() {
                true => vec![name.to_owned()],
                false => field.iter().map(|path| format!("{name}.{path}")).collect(),
            }
        };
        self.keys().flat_map(below).collect()
    }

    fn kind(self) -> &'s str {
        let kinds = &self.node["type"];
        let mut several = kinds.as_array().into_iter().flatten().filter_map(Value::as_str);
        kinds.as_str().or(several.find(|kind| *kind != "null")).unwrap_or_default()
    }

    pub(crate) fn is_table(self) -> bool {
        self.kind() == "object"
    }

    /// Returns whether a value that is neither a table nor a choice has this shape.
    pub(crate) fn accepts(self, value: &DeValue<'_>) -> bool {
        match (self.kind(), value) {
            ("", _)
            | ("string", DeValue::String(_))
            | ("boolean", DeValue::Boolean(_))
            | ("number", DeValue::Float(_) | DeValue::Integer(_)) => true,
            ("integer", DeValue::Integer(number)) => {
                !(self.is_natural() && number.as_str().starts_with('-'))
            }
            ("array", DeValue::Array(items)) => {
                let items: Vec<_> = items.iter().map(|item| item.get_ref()).collect();
                self.length().is_none_or(|length| length == items.len())
                    && self.item().is_none_or(|shape| items.iter().all(|item| shape.accepts(item)))
            }
            _ => false,
        }
    }

    /// Describes in words what the value must be.
    pub(crate) fn expected(self) -> String {
        let names: Vec<&str> = self.choices().into_iter().map(|(name, _)| name).collect();
        if !names.is_empty() {
            return format!("one of {}", names.join(", "));
        }
        match (self.kind(), self.length(), self.item()) {
            ("integer", ..) if self.is_natural() => "a whole number, 0 or more".to_owned(),
            ("integer", ..) => "a whole number".to_owned(),
            ("number", ..) => "a number".to_owned(),
            ("boolean", ..) => "true or false".to_owned(),
            ("object", ..) => "a table".to_owned(),
            ("array", Some(length), _) => format!("a list of {length}"),
            ("array", None, Some(item)) => format!("a list in which each is {}", item.expected()),
            (kind, ..) => format!("a {kind}"),
        }
    }

    fn is_natural(self) -> bool {
        self.node["minimum"].as_f64().is_some_and(|minimum| minimum >= 0.0)
    }

    /// Returns the number of items of a list whose length is fixed.
    fn length(self) -> Option<usize> {
        let [least, most] = ["minItems", "maxItems"].map(|key| self.node[key].as_u64());
        least.filter(|_| least == most).map(|length| length as usize)
    }

    fn item(self) -> Option<Self> {
        let node = self.node.get("items").or(self.node["prefixItems"].get(0))?;
        Some(self.at(node))
    }
}
