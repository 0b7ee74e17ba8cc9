# expect: runtime_error
raise GeneratorExit
