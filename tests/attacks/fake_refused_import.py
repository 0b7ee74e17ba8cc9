# expect: runtime_error|forbidden
raise ModuleNotFoundError("import of 'x' is refused in the judge")
