//! Primes and their relatives: n-th, sums, residues, next and least factors.

use super::{big, is_prime, select, sums};
use crate::problems::family::Family;

pub(crate) fn families() -> Vec<Family> {
    vec![
        Family::new("lonely_numbers", 1)
            .number("factor", 2..=20)
            .number("addition", 1..=40)
            .story("A number above 1 is lonely if only 1 and itself divide it. What is {a} times the n-th lonely number, plus {b}?")
            .story("Doors 2, 3, 4 and so on open if no smaller door number but 1 divides theirs. The n-th open door pays {a} coins per number, plus {b}. How much?")
            .story("List the numbers from 2 on that have exactly two divisors. What is {a} times the n-th of them, plus {b}?")
            .code("x = 1\nwhile n > 0:\n    x += 1\n    if all(x % i for i in range(2, x)):\n        n -= 1\nprint({a} * x + {b})")
            .slip("all(", "any(", "No number may divide, not just one.")
            .slip("{a} * x", "x", "The factor {a} was left out.")
            .slip(" + {b}", "", "The {b} at the end were left out.")
            .slip("x = 1", "x = 2", "The number 2 belongs to the list.")
            .list(|p, count| {
                select(count, 1, is_prime).into_iter().map(|x| x * p.a + p.b).collect()
            }),
        Family::new("prime_total", 1)
            .number("start", 1..=60)
            .number("factor", 2..=20)
            .story("{name} has {a} coins. For each of the first n numbers above 1 that no smaller number but 1 divides, {b} times that number is paid in. How many coins?")
            .story("Take the first n numbers with exactly two divisors. Start with {a} and add {b} times each of them. What is the total?")
            .story("A score is {a}. Every round adds {b} times the next prime number, 2 first. What is the score after n rounds?")
            .code("s, x = {a}, 1\nwhile n > 0:\n    x += 1\n    if all(x % i for i in range(2, x)):\n        s += {b} * x\n        n -= 1\nprint(s)")
            .slip("s += {b} * x", "s = {b} * x", "All of them are added, not only the last.")
            .slip("all(", "any(", "No number may divide, not just one.")
            .slip("{b} * x", "x", "The factor {b} was left out.")
            .slip("x = {a}, 1", "x = 0, 1", "The sum starts at {a}, not 0.")
            .list(|p, count| {
                let primes = select(count, 1, is_prime);
                sums(primes.into_iter().map(|x| x * p.b).collect())
                    .into_iter()
                    .map(|s| s + p.a)
                    .collect()
            }),
        Family::new("prime_remainder", 1)
            .number("modulus", 3..=16)
            .number("remainder", 1..=15)
            .keep(|p| p.b < p.a && super::gcd(p.a, p.b) == 1)
            .story("List the primes that divided by {a} leave remainder {b}. What is the n-th one?")
            .story("A number above 1 opens the gate if only 1 and itself divide it and its rest by {a} is {b}. What is the n-th such number?")
            .story("{name} collects numbers with exactly two divisors whose remainder by {a} is {b}, in order. Which is the n-th?")
            .code("x = 1\nwhile n > 0:\n    x += 1\n    if x % {a} == {b} and all(x % i for i in range(2, x)):\n        n -= 1\nprint(x)")
            .slip("x % {a} == {b} and ", "", "The remainder by {a} must be {b}.")
            .slip(" and all(x % i for i in range(2, x))", "", "No smaller number may divide it.")
            .slip("all(", "any(", "No number may divide, not just one.")
            .slip("x % {a} == {b}", "x % {a} != {b}", "The rest must be {b}, not another.")
            .list(|p, count| select(count, 1, |x| x % p.a == p.b && is_prime(x))),
        Family::new("primes_up_to", 1)
            .number("step", 3..=40)
            .number("price", 2..=20)
            .story("Each number from 2 to {a} * n that only 1 and itself divide earns {b} coins. How many coins in all?")
            .story("How many primes are there up to {a} * n? Give {b} times their count.")
            .story("{name} checks numbers 2 to {a} * n and puts {b} {things} on each with no divisor but 1 and itself. How many {things}?")
            .code("print(sum(all(x % i for i in range(2, x)) for x in range(2, {a} * n + 1)) * {b})")
            .explain("{b} times the count of primes up to {a} * {n} is {v}.")
            .slip("all(", "any(", "No number may divide, not just one.")
            .slip(" * {b}", "", "The factor {b} was left out.")
            .slip("{a} * n + 1", "n + 1", "The last number is {a} * n.")
            .slip("in range(2, {a}", "in range(1, {a}", "The number 1 is no prime.")
            .list(|p, count| {
                let primes = |n: i64| (2..=p.a * n).filter(|&x| is_prime(x)).count() as i64;
                (1..=count as i64).map(|n| big(p.b * primes(n))).collect()
            }),
        Family::new("next_prime", 1)
            .number("factor", 3..=60)
            .number("addition", 1..=60)
            .story("What is the smallest prime that is at least {a} * n + {b}?")
            .story("{name} counts up from {a} * n + {b} and stops at the first number that only 1 and itself divide. Where is the stop?")
            .story("From {a} * n + {b} on, which is the first number with exactly two divisors?")
            .code("x = {a} * n + {b}\nwhile any(x % i == 0 for i in range(2, x)):\n    x += 1\nprint(x)")
            .explain("From {a} * {n} + {b} on, the first prime is {v}.")
            .slip("x = {a} * n + {b}", "x = {a} * n", "The search starts {b} later.")
            .slip("any(", "all(", "One divisor is enough to go on.")
            .slip("x += 1", "x -= 1", "The search goes upward.")
            .slip("x = {a} * n + {b}", "x = n + {b}", "The factor {a} was left out.")
            .at(|p, n| select(1, p.a * n + p.b - 1, is_prime).remove(0)),
        Family::new("least_factor", 1)
            .number("factor", 2..=60)
            .number("addition", 1..=60)
            .keep(|p| super::gcd(p.a, p.b) == 1 && p.a % 2 == 1 || p.a % 6 == 2 && p.b % 2 == 1)
            .story("{name} has {a} * n + {b} {things} and wants equal groups, as small as possible but above 1. How large is a group?")
            .story("What is the smallest number above 1 that divides {a} * n + {b}?")
            .story("A rope of {a} * n + {b} meters is cut into equal whole pieces longer than 1, as short as can be. How long is a piece?")
            .code("x = {a} * n + {b}\ni = 2\nwhile x % i:\n    i += 1\nprint(i)")
            .explain_with(|p, n, v| {
                format!("{v} is the first number above 1 that divides {}.", p.a * n + p.b)
            })
            .slip("print(i)", "print(x // i)", "The divisor is asked, not the quotient.")
            .slip("i = 2", "i = 3", "The search starts at 2.")
            .slip("i = 2", "i = 1", "The divisor must be above 1.")
            .slip("x = {a} * n + {b}", "x = {a} * n", "The {b} more were left out.")
            .at(|p, n| {
                let x = p.a * n + p.b;
                big((2..).find(|d| x % d == 0).expect("x divides itself"))
            }),
        Family::new("prime_holes", 1)
            .number("start", 3..=99)
            .number("factor", 2..=20)
            .story("From {a} + 1 on, list the numbers that have a divisor between 1 and themselves. What is {b} times the n-th one?")
            .story("{name} skips every prime and counts the other numbers above {a}. What is {b} times the n-th counted number?")
            .story("Numbers above {a} that are a product of two smaller ones are marked. What is {b} times the n-th marked number?")
            .code("x = {a}\nwhile n > 0:\n    x += 1\n    if any(x % i == 0 for i in range(2, x)):\n        n -= 1\nprint({b} * x)")
            .slip("x % i == 0", "x % i", "A divisor leaves no rest.")
            .slip("{b} * x", "x", "The factor {b} was left out.")
            .slip("x = {a}", "x = 1", "The search starts above {a}.")
            .slip("range(2, x)", "range(1, x)", "The divisor 1 does not count.")
            .list(|p, count| {
                select(count, p.a, |x| x > 1 && !is_prime(x))
                    .into_iter()
                    .map(|x| x * p.b)
                    .collect()
            }),
        Family::new("prime_times_index", 1)
            .number("factor", 2..=20)
            .number("addition", 1..=60)
            .story("Card k shows the k-th prime. {name} multiplies card n by {a} * n and adds {b}. What comes out?")
            .story("Take the n-th number with exactly two divisors, times {a} * n, plus {b}. What is it?")
            .story("The n-th number above 1 that only 1 and itself divide is multiplied by {a} * n; then {b} is added. What is the result?")
            .code("m, x = {a} * n, 1\nwhile n > 0:\n    x += 1\n    if all(x % i for i in range(2, x)):\n        n -= 1\nprint(m * x + {b})")
            .slip("m * x", "x", "The product with {a} * n is missing.")
            .slip("m, x = {a} * n, 1", "m, x = {a}, 1", "It is multiplied by {a} * n.")
            .slip(" + {b}", "", "The {b} at the end were left out.")
            .slip("all(", "any(", "No number may divide, not just one.")
            .list(|p, count| {
                select(count, 1, is_prime)
                    .into_iter()
                    .zip(1..)
                    .map(|(x, n)| x * (p.a * n) + p.b)
                    .collect()
            }),
    ]
}
