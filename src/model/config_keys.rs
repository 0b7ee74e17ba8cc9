//! Typed access to the keys of a `config.json`, within bounds. Every error names the key.

use super::families::Window;
use crate::base::error::usage;
use crate::ops::rope::Llama3Scaling;
use anyhow::Result;
use serde_json::Value;
use std::ops::RangeInclusive;

/// These bounds are far above those of any model. Products of sizes within them, in bytes, fit into 64
/// bits.
pub(crate) const MOST_LAYERS: usize = 1 << 12;
pub(crate) const MOST_HEADS: usize = 1 << 12;
pub(crate) const WIDEST: usize = 1 << 18;
pub(crate) const MOST_TOKENS: usize = 1 << 24;
pub(crate) const MOST_POSITIONS: usize = 1 << 32;
const FULL_ATTENTION: &str = "full_attention";
const THETA: RangeInclusive<f64> = 1.0..=1e15;

/// What the keys say about rotary positions.
pub(crate) struct RopeKeys {
    pub(crate) theta: f64,
    pub(crate) scaling: Option<Llama3Scaling>,
}

/// The keys of the JSON object. A key that is null counts as missing.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a>(pub(crate) &'a Value);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| wrong(key, "a string", value)))
            .transpose()
    }

    pub(crate) fn first_architecture(&self) -> Option<&'a str> {
        self.get("architectures")?.get(0)?.as_str()
    }

    pub(crate) fn size(&self, key: &str, most: usize) -> Result<usize> {
        let value = self.get(key).ok_or_else(|| usage(format!("`{key}` is missing")))?;
        match value.as_u64() {
            Some(size) if (1..=most as u64).contains(&size) => Ok(size as usize),
            _ => Err(wrong(key, &format!("an integer from 1 to {most}"), value)),
        }
    }

    pub(crate) fn size_or(&self, key: &str, default: usize, most: usize) -> Result<usize> {
        if self.get(key).is_some() { self.size(key, most) } else { Ok(default) }
    }

    pub(crate) fn number_or(
        &self,
        key: &str,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> Result<f64> {
        self.get(key).map_or(Ok(default), |value| within(key, value, range))
    }

    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |value| {
            value.as_bool().ok_or_else(|| wrong(key, "true or false", value))
        })
    }

    /// Ids of tokens, of which there are `count`.
    pub(crate) fn tokens_below(&self, key: &str, count: usize) -> Result<Vec<u32>> {
        let token = |value: &Value| {
            let id = value.as_u64().and_then(|token| u32::try_from(token).ok());
            id.filter(|&id| (id as usize) < count).ok_or_else(|| {
                let expected = format!("a token id below {count} (vocab_size) or a list of them");
                wrong(key, &expected, value)
            })
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(token).collect(),
            Some(value) => Ok(vec![token(value)?]),
        }
    }

    /// Reads the rotary positions from the older layout (`rope_theta`, `rope_scaling`) or the newer one
    /// (`rope_parameters`). Where both give a value, `rope_scaling` decides, as in transformers.
    pub(crate) fn rope(&self) -> Result<RopeKeys> {
        refuse_partial("partial_rotary_factor", self.get("partial_rotary_factor"))?;
        let theta = self.number_or("rope_theta", 10_000.0, THETA)?;
        let dict = ["rope_scaling", "rope_parameters"]
            .into_iter()
            .filter_map(|name| Some((name, self.get(name)?)))
            .find(|(_, dict)| dict.as_object().is_none_or(|keys| !keys.is_empty()));
        let Some((name, dict)) = dict else {
            return Ok(RopeKeys { theta, scaling: None });
        };
        let Some(entries) = dict.as_object() else {
            return Err(wrong(name, "an object or null", dict));
        };
        if let Some((key, value)) = entries.iter().find(|(_, value)| value.is_object()) {
            return unsupported(&format!("{name}.{key}"), value, "one rotation for all layers");
        }
        let rope = Keys(dict);
        let path = |key: &str| format!("{name}.{key}");
        refuse_partial(&path("partial_rotary_factor"), rope.get("partial_rotary_factor"))?;
        let theta = match rope.get("rope_theta") {
            Some(value) => within(&path("rope_theta"), value, THETA)?,
            None => theta,
        };
        let mut keys = RopeKeys { theta, scaling: None };
        let default = Value::from("default");
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).unwrap_or(&default);
        match (kind.as_str(), rope.get("factor")) {
            (Some("default"), None) => {}
            (Some("default" | "linear"), Some(factor)) if factor.as_f64() == Some(1.0) => {}
            (Some("default" | "linear"), Some(factor)) => {
                return unsupported(&path("factor"), factor, "1.0");
            }
            (Some("llama3"), _) => keys.scaling = Some(self.llama3_scaling(name, rope)?),
            // Dynamic rope scales only beyond the model's positions, and longer sequences are refused.
            (Some("dynamic"), _) => {}
            _ => {
                let supported =
                    "\"default\", \"llama3\", \"dynamic\", \"linear\" with a factor of 1.0";
                return unsupported(&path("rope_type"), kind, supported);
            }
        }
        Ok(keys)
    }

    pub(crate) fn max_position_embeddings(&self) -> Result<usize> {
        self.size("max_position_embeddings", MOST_POSITIONS)
    }

    fn llama3_scaling(&self, name: &str, rope: Keys<'_>) -> Result<Llama3Scaling> {
        let above_zero = |key: &str| {
            let path = format!("{name}.{key}");
            let value = rope.get(key).ok_or_else(|| usage(format!("`{path}` is missing")))?;
            match number(&path, value)? {
                x if x > 0.0 => Ok(x as f32),
                _ => Err(wrong(&path, "a number above 0", value)),
            }
        };
        let context = "original_max_position_embeddings";
        Ok(Llama3Scaling {
            factor: above_zero("factor")?,
            low_freq_factor: above_zero("low_freq_factor")?,
            high_freq_factor: above_zero("high_freq_factor")?,
            original_max_position_embeddings: match rope.get(context) {
                Some(_) => above_zero(context)?,
                None => self.max_position_embeddings()? as f32,
            },
        })
    }

    /// Refuses keys that would change the numbers and that the decoder does not compute.
    pub(crate) fn refuse_unsupported(&self, window: Window) -> Result<()> {
        if let Some(value) = self.get("hidden_act")
            && value != "silu"
        {
            return unsupported("hidden_act", value, "\"silu\"");
        }
        if self.get("quantization_config").is_some() {
            return Err(usage(
                "`quantization_config` says that the weights are quantized, which is not supported: take \
                 the model in bf16, f16 or f32",
            ));
        }
        for key in ["attention_bias", "mlp_bias", "bias"] {
            if let Some(value) = self.get(key)
                && value != false
            {
                return unsupported(key, value, "false");
            }
        }
        match self.get("layer_types") {
            None => {}
            Some(Value::Array(types)) => {
                if let Some(other) = types.iter().find(|kind| *kind != FULL_ATTENTION) {
                    return unsupported("layer_types", other, "\"full_attention\"");
                }
                let layers = self.size("num_hidden_layers", MOST_LAYERS)?;
                if types.len() != layers {
                    return Err(usage(format!(
                        "`layer_types` has {} entries, but `num_hidden_layers` is {layers}",
                        types.len()
                    )));
                }
            }
            Some(value) => return Err(wrong("layer_types", "a list or null", value)),
        }
        self.refuse_window(window)
    }

    fn refuse_window(&self, window: Window) -> Result<()> {
        let positions = self.max_position_embeddings()? as u64;
        let hides_something = |size: &&Value| size.as_u64().is_none_or(|size| size < positions);
        match (window, self.get("sliding_window").filter(hides_something)) {
            (_, None) => Ok(()),
            (Window::Given, Some(size)) => {
                let supported =
                    "null, or at least max_position_embeddings (without the key it is 4096)";
                unsupported("sliding_window", size, supported)
            }
            // The types of the layers, which are all supported, decide in place of the switch.
            (Window::Switched, _) if self.get("layer_types").is_some() => Ok(()),
            (Window::Switched, _) => {
                let full = self.size_or("max_window_layers", 28, MOST_LAYERS)?;
                if self.flag_or("use_sliding_window", false)?
                    && full < self.size("num_hidden_layers", MOST_LAYERS)?
                {
                    return unsupported(
                        "use_sliding_window",
                        &Value::from(true),
                        "false, or true with `max_window_layers` no smaller than `num_hidden_layers`",
                    );
                }
                Ok(())
            }
        }
    }
}

/// Refuses rotary positions on a part of each head.
fn refuse_partial(key: &str, factor: Option<&Value>) -> Result<()> {
    match factor {
        Some(factor) if factor.as_f64() != Some(1.0) => unsupported(key, factor, "1.0"),
        _ => Ok(()),
    }
}

fn unsupported<T>(key: &str, value: &Value, supported: &str) -> Result<T> {
    Err(usage(format!("`{key}` is {value}; supported: {supported}")))
}

fn number(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().ok_or_else(|| wrong(key, "a number", value))
}

fn within(key: &str, value: &Value, range: RangeInclusive<f64>) -> Result<f64> {
    match number(key, value)? {
        x if range.contains(&x) => Ok(x),
        _ => Err(wrong(key, &format!("from {:e} to {:e}", range.start(), range.end()), value)),
    }
}

fn wrong(key: &str, expected: &str, value: &Value) -> anyhow::Error {
    usage(format!("`{key}` is {value}, but must be {expected}"))
}
