//! The families of number sequences, one file per kind.
//!
//! House rules: a story has one to three short sentences and tells its numbers as digits, in the
//! order in which the program uses them; it determines the sequence and does not name it. Every
//! program reads `n` first and prints once; loops are `for i in range(...)`, running values `x, y,
//! z`, sums `s`, tables `c`. Slips edit one place. Terms are computed apart from the program.

mod bits;
mod combinatorics;
mod compositions;
mod digits;
mod figurate;
mod nonlinear;
mod number_theory;
mod patterns;
mod polynomials;
mod primes;
mod properties;
mod recurrences;
mod unseen;

use super::family::Family;
use num_bigint::BigInt;

/// Lists every family, in a fixed order.
pub fn all() -> Vec<Family> {
    let kinds = [
        ("polynomials", polynomials::families()),
        ("figurate numbers", figurate::families()),
        ("linear recurrences", recurrences::families()),
        ("non-linear recurrences", nonlinear::families()),
        ("number theory", number_theory::families()),
        ("digits and bases", digits::families()),
        ("primes", primes::families()),
        ("combinatorics and partitions", combinatorics::families()),
        ("integers with a property", properties::families()),
        ("runs and periods", patterns::families()),
        ("bits", bits::families()),
        ("compositions", compositions::families()),
        ("unseen", unseen::families()),
    ];
    let mut all = Vec::new();
    for (kind, families) in kinds {
        all.extend(families.into_iter().map(|mut family| {
            family.kind = kind;
            family
        }));
    }
    all
}

fn big(value: i64) -> BigInt {
    BigInt::from(value)
}

/// Makes a sequence of `first`, then each term from the one before and its index from 1.
fn iterate(count: usize, first: i64, step: impl Fn(&BigInt, i64) -> BigInt) -> Vec<BigInt> {
    let mut terms = vec![big(first)];
    for i in 1..count {
        let next = step(&terms[i - 1], i as i64);
        terms.push(next);
    }
    terms
}

/// Makes a sequence of the given first terms, then each term from all those before.
fn extend(count: usize, first: &[i64], step: impl Fn(&[BigInt]) -> BigInt) -> Vec<BigInt> {
    let mut terms: Vec<BigInt> = first.iter().map(|&v| big(v)).collect();
    while terms.len() < count {
        terms.push(step(&terms));
    }
    terms
}

/// Selects the first `count` integers above `from` that fulfil `condition`.
fn select(count: usize, from: i64, condition: impl Fn(i64) -> bool) -> Vec<BigInt> {
    (from + 1..).filter(|&x| condition(x)).take(count).map(big).collect()
}

/// Returns the running sums of `terms`.
fn sums(terms: Vec<BigInt>) -> Vec<BigInt> {
    let mut total = big(0);
    terms
        .into_iter()
        .map(|term| {
            total += term;
            total.clone()
        })
        .collect()
}

fn gcd(x: i64, y: i64) -> i64 {
    num_integer::gcd(x, y)
}

fn is_prime(x: i64) -> bool {
    x > 1 && (2..).take_while(|d| d * d <= x).all(|d| x % d != 0)
}

fn choose(n: i64, k: i64) -> BigInt {
    if k < 0 || k > n {
        return big(0);
    }
    num_integer::binomial(big(n), big(k))
}

/// Returns the digits of `x` in `base`, lowest first.
fn digits_in(mut x: BigInt, base: i64) -> Vec<i64> {
    let mut digits = Vec::new();
    while x > big(0) {
        digits.push(i64::try_from(&x % base).expect("a digit is small"));
        x /= base;
    }
    digits
}

fn digit_sum(x: &BigInt) -> i64 {
    digits_in(x.clone(), 10).iter().sum()
}

/// Returns the number whose digits in `base` are `digits`, lowest first.
fn from_digits(digits: &[i64], base: i64) -> BigInt {
    digits.iter().rev().fold(big(0), |x, &d| x * base + d)
}

fn reversed(x: &BigInt) -> BigInt {
    let mut digits = digits_in(x.clone(), 10);
    digits.reverse();
    from_digits(&digits, 10)
}
