/* test_template.c - rendered texts, byte for byte. */
#include <errno.h>

#include "tests/support/test.h"
#include "tests/support/test_data.h"

#include "worker/template.h"
#include "worker/template_known.h"

static struct row row;
static struct rendered out;

static int tear_down(void **state)
{
    (void)state;
    rows_free(&row);
    rendered_free(&out);
    return 0;
}

#define M(role, content) "{\"role\":\"" role "\",\"content\":\"" content "\"}"

/* Renders [messages] + one assistant reply " r ". */
static int render(const struct template *t, const char *messages)
{
    const struct rows_rule rule = {SPEC_FORMAT_TEXT, SPEC_PREF_NONE, SPEC_SFT};
    enum drop_reason reason = DROP_REASONS;
    struct err err = {{0}};
    char json[1024];

    (void)snprintf(json, sizeof json, "{\"messages\":[%s," M("assistant", " r ") "]}", messages);
    assert_int_equal(rows_parse(&rule, json, strlen(json), &row, &reason, &err), 0);
    const int r = template_render(t, &row, 1, &out, &reason, &err);
    if (r == 1)
        assert_int_equal(reason, DROP_ROLES);
    return r;
}

static void check(const struct template *t, const char *messages, const char *prompt,
                  const char *reply)
{
    assert_int_equal(render(t, messages), 0);
    assert_string_equal(out.prompt.s, prompt);
    assert_string_equal(out.reply[0].s, reply);
}

#define VICUNA                                                                                     \
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives " \
    "helpful, detailed, and polite answers to the user's questions."

#define ONE   M("user", " q ")
#define TWO   ONE "," M("assistant", " a ") "," M("user", "p")
#define THREE M("system", " s ") "," TWO

static void test_paper(void **state)
{
    (void)state;
    struct template t = {.kind = SPEC_TEMPLATE_VICUNA, .eos = "</s>"};
    check(&t, ONE, VICUNA " USER: q ASSISTANT:", " r");
    check(&t, TWO, VICUNA " USER: q ASSISTANT: a</s>USER: p ASSISTANT:", " r");
    check(&t, THREE, "s USER: q ASSISTANT: a</s>USER: p ASSISTANT:", " r");
    t.kind = SPEC_TEMPLATE_MISTRAL;
    check(&t, ONE, "[INST] q [/INST]", " r ");
    check(&t, TWO, "[INST] q [/INST] a </s>[INST] p [/INST]", " r ");
    check(&t, THREE, "[INST] s\n\nq [/INST] a </s>[INST] p [/INST]", " r ");
    assert_int_equal(render(&t, ONE "," M("user", "x")), 1);
    assert_int_equal(render(&t, M("assistant", "x") "," ONE), 1);
    assert_int_equal(render(&t, ONE "," M("system", "x")), 1);
    t.kind = SPEC_TEMPLATE_NONE;
    assert_int_equal(render(&t, ONE), -EINVAL);
}

static void test_known(void **state)
{
    (void)state;
    static const struct {
        const char *name, *one, *three, *reply;
    } cases[] = {
        {"Llama-2-chat", "<s>[INST] q [/INST]",
         "<s>[INST] <<SYS>>\n s \n<</SYS>>\n\n q [/INST] a </s><s>[INST] p [/INST]", " r </s>"},
        {"Mistral-7B-Instruct-v0.1", "<s>[INST]  q  [/INST]", NULL, " r </s> "},
        {"Mistral-7B-Instruct-v0.2", "<s>[INST]  q  [/INST]", NULL, " r </s>"},
        {"Meta-Llama-3-8B-Instruct",
         "<s><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
         "<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\np<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n",
         "r<|eot_id|>"},
        {"ChatML", "<|im_start|>user\n q <|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\n s <|im_end|>\n<|im_start|>user\n q <|im_end|>\n"
         "<|im_start|>assistant\n a <|im_end|>\n<|im_start|>user\np<|im_end|>\n"
         "<|im_start|>assistant\n",
         " r <|im_end|>\n"},
        {"Qwen2-Instruct",
         "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
         "<|im_start|>user\n q <|im_end|>\n<|im_start|>assistant\n",
         NULL, " r <|im_end|>\n"},
        {"zephyr-7b-beta", "<|user|>\n q </s>\n<|assistant|>\n",
         "<|system|>\n s </s>\n<|user|>\n q </s>\n<|assistant|>\n a </s>\n<|user|>\np</s>\n"
         "<|assistant|>\n",
         " r </s>\n"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct template t = {.kind = SPEC_TEMPLATE_MODEL,
                             .eos = "</s>",
                             .bos = "<s>",
                             .known = template_known_named(cases[i].name)};
        assert_non_null(t.known);
        check(&t, ONE, cases[i].one, cases[i].reply);
        if (cases[i].three)
            check(&t, THREE, cases[i].three, cases[i].reply);
    }
    assert_null(template_known_find("{{ messages }}"));
    assert_null(template_known_named("?"));
}

/* A folder without a chat template, and one with a template nobody knows. */
static void test_model_refusal(void **state)
{
    (void)state;
    struct tokenizer *tok = NULL;
    struct template t;
    struct err err = {{0}};
    assert_int_equal(tokenizer_open(test_data_path("demo"), &tok, NULL), 0);
    assert_int_equal(template_init(&t, SPEC_TEMPLATE_MODEL, tok, &err), -EINVAL);
    assert_non_null(strstr(err.text, "no chat template"));
    assert_int_equal(template_init(&t, SPEC_TEMPLATE_VICUNA, tok, &err), 0);
    assert_string_equal(t.eos, "</s>");
    tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_paper, tear_down),
        cmocka_unit_test_teardown(test_known, tear_down),
        cmocka_unit_test_teardown(test_model_refusal, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
