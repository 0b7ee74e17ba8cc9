//! Bit tricks: ones, differing and joined bits, reversed and reread binary forms.

use super::{big, digits_in, from_digits};
use crate::problems::family::Family;

fn bits(x: i64) -> Vec<i64> {
    digits_in(big(x), 2)
}

fn binary(x: i64) -> String {
    format!("{x:b}")
}

pub(crate) fn families() -> Vec<Family> {
    vec![
        Family::new("ones_of_multiple", 1)
            .number("factor", 3..=199)
            .number("price", 2..=9)
            .keep(|p| p.a % 2 == 1)
            .story("{name} writes {a} * n in binary. Each 1 in it pays {b} coins. How many coins?")
            .story("A panel shows {a} * n in binary with lamps; a lit lamp stands for 1 and uses {b} watts. How many watts are used?")
            .story("Count the ones in the binary form of {a} * n. What is {b} times the count?")
            .code("print(bin({a} * n).count(\"1\") * {b})")
            .explain_with(|p, n, v| {
                format!("{} is {} in binary, so {v}.", p.a * n, binary(p.a * n))
            })
            .slip("count(\"1\")", "count(\"0\")", "Ones are counted, not zeros.")
            .slip("bin({a} * n)", "str({a} * n)", "The number is written in binary.")
            .slip("{a} * n", "n", "The number is {a} * n, not n.")
            .slip(" * {b}", "", "The factor {b} was left out.")
            .at(|p, n| big(bits(p.a * n).iter().sum::<i64>() * p.b)),
        Family::new("differing_bits", 0)
            .number("factor", 2..=20)
            .number("key", 5..=99)
            .story("{name} writes {a} * n and {b} in binary, one below the other. The result has a 1 where the two differ. Which number is it?")
            .story("A code turns {a} * n into a number whose binary digit is 1 exactly where {a} * n and {b} have different digits. What is it?")
            .story("Lamps show {a} * n in binary. Each lamp where {b} has a 1 in binary is switched over. Which number is shown now?")
            .code("print(({a} * n) ^ {b})")
            .explain_with(|p, n, v| {
                format!("{} and {} differ in {v}.", binary(p.a * n), binary(p.b))
            })
            .slip("^", "|", "Equal ones give 0, not 1.")
            .slip("^", "+", "The bits are compared, not added.")
            .slip("^", "&", "A 1 stands where they differ.")
            .slip("({a} * n)", "n", "The number is {a} * n, not n.")
            .at(|p, n| big((p.a * n) ^ p.b)),
        Family::new("joined_bits", 0)
            .number("factor", 3..=30)
            .number("mask", 5..=120)
            .story("{name} writes {a} * n and {b} in binary, one below the other. The result has a 1 where at least one of them has a 1. Which number is it?")
            .story("Lamps show {a} * n in binary. Then every lamp where {b} has a 1 in binary is switched on, if it is not yet. Which number is shown?")
            .story("Two keys are the binary forms of {a} * n and {b}. Put together, a place is 1 if either has a 1. What number is that?")
            .code("print(({a} * n) | {b})")
            .explain_with(|p, n, v| {
                format!("{} and {} joined make {v}.", binary(p.a * n), binary(p.b))
            })
            .slip("|", "^", "Two ones give 1, not 0.")
            .slip("|", "+", "The bits are joined, not added.")
            .slip("|", "&", "One 1 is enough for a 1.")
            .slip("({a} * n)", "n", "The number is {a} * n, not n.")
            .at(|p, n| big((p.a * n) | p.b)),
        Family::new("common_bits", 1)
            .number("factor", 3..=60)
            .number("mask", 21..=255)
            .keep(|p| p.a % 4 != 0 && p.b.count_ones() >= 4 && p.b % 2 == 1)
            .story("{name} writes {a} * n and {b} in binary, one below the other. The result has a 1 where both have a 1. Which number is it?")
            .story("Lamps show {a} * n in binary. Every lamp where {b} has a 0 in binary is switched off. Which number is shown?")
            .story("A sieve with the binary form of {b} keeps a 1 of {a} * n only where it has a 1 itself. What number passes?")
            .code("print({a} * n & {b})")
            .explain_with(|p, n, v| {
                format!("{} and {} share {v}.", binary(p.a * n), binary(p.b))
            })
            .slip("&", "|", "Both must have a 1 there.")
            .slip("&", "^", "A 1 stands where both have one.")
            .slip("&", "%", "Bits are compared, nothing is divided.")
            .slip("{a} * n", "n", "The number is {a} * n, not n.")
            .at(|p, n| big((p.a * n) & p.b)),
        Family::new("mirrored_bits", 1)
            .number("factor", 3..=99)
            .number("addition", 1..=40)
            .keep(|p| p.a % 2 == 1)
            .story("{name} writes {a} * n in binary, reads it backwards as binary, and adds {b}. Which number results?")
            .story("The binary digits of {a} * n are reversed. What is the number they form, plus {b}?")
            .story("A mirror turns the binary form of {a} * n around, and {b} is added to that number. What is it?")
            .code("print(int(bin({a} * n)[:1:-1], 2) + {b})")
            .explain_with(|p, n, v| {
                format!("{} reversed, plus {}, is {v}.", binary(p.a * n), p.b)
            })
            .slip(" + {b}", "", "The {b} at the end were left out.")
            .slip("[:1:-1]", "[2:]", "The binary digits must be reversed.")
            .slip("int(bin({a} * n)[:1:-1], 2)", "int(str({a} * n)[::-1])", "The binary digits are reversed.")
            .slip("{a} * n", "n", "The number is {a} * n, not n.")
            .at(|p, n| {
                let mut digits = bits(p.a * n);
                digits.reverse();
                from_digits(&digits, 2) + p.b
            }),
        Family::new("binary_numeral", 0)
            .number("factor", 3..=60)
            .number("addition", 1..=60)
            .story("{name} writes {a} * n + {b} with the digits 0 and 1 only, in base 2. What is written?")
            .story("A row of lamps shows {a} * n + {b} in binary, 1 for lit and 0 for dark, first lamp lit. Which row of digits is it?")
            .story("Multiply n by {a}, add {b} and write the result in binary. What stands there?")
            .code("print(bin({a} * n + {b})[2:])")
            .explain_with(|p, n, _| {
                format!("{} in binary is {}.", p.a * n + p.b, binary(p.a * n + p.b))
            })
            .slip("bin({a} * n + {b})[2:]", "{a} * n + {b}", "The number is written in binary.")
            .slip(" + {b}", "", "The {b} must be added first.")
            .slip("{a} * n", "n", "The factor {a} was left out.")
            .slip("[2:]", "[:1:-1]", "The digits must not be reversed.")
            .at(|p, n| binary(p.a * n + p.b).parse().expect("binary digits are a number")),
        Family::new("place_values", 1)
            .number("base", 3..=30)
            .number("factor", 2..=20)
            .keep(|p| p.a != 10)
            .story("Write n in binary. The places from the right are worth 1, {a}, {a} * {a} and so on instead. What is that value times {b}?")
            .story("{name} reads the binary form of n as if it were written in base {a}. What is {b} times the number read?")
            .story("Switches for 1, 2, 4, 8 that make up n now pay 1, {a}, {a} ** 2, {a} ** 3 coins and so on, {b} times over. How many coins?")
            .code("print(int(bin(n)[2:], {a}) * {b})")
            .explain_with(|p, n, v| {
                format!("{} read in base {}, times {}, is {v}.", binary(n), p.a, p.b)
            })
            .slip(", {a})", ", 2)", "The places have base {a}, not 2.")
            .slip("int(bin(n)[2:], {a})", "int(bin(n)[2:])", "The places have base {a}, not 10.")
            .slip(" * {b}", "", "The factor {b} was left out.")
            .slip("bin(n)[2:]", "bin(n)[:1:-1]", "The digits must not be reversed.")
            .at(|p, n| from_digits(&bits(n), p.a) * p.b),
        Family::new("neighbour_bits", 1)
            .number("factor", 2..=99)
            .number("addition", 1..=30)
            .keep(|p| p.a % 2 == 1)
            .story("Write {a} * n in binary. Each digit but the first becomes 1 if it differs from the one on its left, else 0; the first stays. Add {b} to this number. What is it?")
            .story("{name} takes {a} * n and its half, rounded down, in binary. A 1 stands where they differ. What is that number plus {b}?")
            .story("Compare the binary forms of {a} * n and of {a} * n halved and rounded down. Put 1 where they differ, then add {b}. What comes out?")
            .code("x = {a} * n\nprint((x ^ x // 2) + {b})")
            .explain_with(|p, n, v| {
                let x = p.a * n;
                format!("{} against {}, plus {}, is {v}.", binary(x), binary(x / 2), p.b)
            })
            .slip("x ^ x // 2", "x ^ 2 * x", "It is compared with the half.")
            .slip(" + {b}", "", "The {b} at the end were left out.")
            .slip("x ^ x // 2", "x | x // 2", "Equal ones give 0, not 1.")
            .slip("x = {a} * n", "x = n", "The number is {a} * n, not n.")
            .at(|p, n| big((p.a * n) ^ (p.a * n / 2)) + p.b),
    ]
}
