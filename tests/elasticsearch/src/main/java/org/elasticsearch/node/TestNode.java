package org.elasticsearch.node;

import org.apache.logging.log4j.LogManager;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.core.IOUtils;
import org.elasticsearch.env.Environment;
import org.elasticsearch.http.HttpServerTransport;
import org.elasticsearch.plugins.ClasspathPluginsService;
import org.elasticsearch.plugins.PluginsLoader;
import org.elasticsearch.plugins.PluginsService;
import org.elasticsearch.transport.netty4.Netty4Plugin;
import testnode.AnalysisPlugin;
import testnode.RootPlugin;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * One Elasticsearch node on loopback without security: prints "READY URL" when it answers, logs to standard error, ends
 * on SIGTERM. Port and data folder are its own. It lies in this package because NodeServiceProvider is private to it.
 *
 * <p>Arguments: {@code -E setting=value}, any number of times.
 */
public class TestNode extends Node {
    private TestNode(Settings settings) {
        super(NodeConstruction.prepareConstruction(
            new Environment(settings, null),
            PluginsLoader.createPluginsLoader(Set.of(), Set.of(), Map.of(), false),
            new NodeServiceProvider() {
                @Override
                PluginsService newPluginService(Environment environment, PluginsLoader loader) {
                    return new ClasspathPluginsService(environment.settings(), loader,
                        List.of(Netty4Plugin.class, AnalysisPlugin.class, RootPlugin.class));
                }
            },
            true));
    }

    public static void main(String[] args) throws Exception {
        Settings.Builder extra = Settings.builder();
        for (int i = 0; i + 1 < args.length; i += 2) {
            if (!args[i].equals("-E")) {
                throw new IllegalArgumentException("unknown option: " + args[i]);
            }
            String[] setting = args[i + 1].split("=", 2);
            extra.put(setting[0], setting[1]);
        }
        Path home = Files.createTempDirectory("bespeak-test-node");

        Settings settings = Settings.builder()
            .put("cluster.name", "test")
            .put("node.name", "test")
            .put("path.home", home)
            .put("network.host", "127.0.0.1")
            .put("http.port", "0")
            .put("transport.port", "0")
            .put("discovery.type", "single-node")
            .put("cluster.routing.allocation.disk.threshold_enabled", false) // works on a nearly full disk too
            .put("indices.breaker.total.use_real_memory", false) // no spurious 429 on a small heap
            .put(extra.build())
            .build();

        LogManager.getContext(false); // makes Log4j read log4j2.properties: too late once the next line has run
        LogConfigurator.configureESLogging();
        LogConfigurator.configureWithoutConfig(settings);
        LogConfigurator.setNodeName("test");

        TestNode node = new TestNode(settings);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> shutDown(node, home), "shutdown"));
        node.start();
        int bound = node.injector().getInstance(HttpServerTransport.class).boundAddress().publishAddress().getPort();
        System.out.println("READY http://127.0.0.1:" + bound);
        System.out.flush();
        new CountDownLatch(1).await(); // the node's own threads are daemons: keep the JVM up until it gets a signal
    }

    private static void shutDown(TestNode node, Path remove) {
        try {
            node.prepareForClose();
            node.close();
            node.awaitClose(10, TimeUnit.SECONDS);
            IOUtils.rm(remove);
        } catch (IOException e) {
            e.printStackTrace();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }
}
