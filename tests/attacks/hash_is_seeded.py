# expect: pass
print("contained" if hash("codeseq") == hash("code" + "seq") and list({"a", "b", "c", "d"}) == list({"a", "b", "c", "d"}) else "ESCAPED")
